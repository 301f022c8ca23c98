//! Configurations as users write them: read, refused with every mistake, printed.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use super::*;

const WHOLE: &str = r#"
driver = "local"

[docker]
endpoint = "unix:///run/user/1000/docker.sock"
image = "mine:1"
runtime = "runsc"
link = "exec"

[local]
opencode = "/opt/opencode"
sidecar = "/opt/sidecar"

[session]
model = "ollama/qwen3:8b"
agent = "plan"
permission_mode = "auto-edit"
idle_timeout = "1h30m"
idle_action = "stop"
memory = "3GiB"
cpus = 1.5
pids = 300

[daemon]
log = "debug"
stop_grace = "500ms"
on_shutdown = "stop"
max_running = 5
memory_budget = "12GiB"

[pool]
size = 3
max_age = "90m"

[history]
compact_after = 500
max = "16MiB"

[store]
reserve = "1GiB"

[journal]
max = "32MiB"

[provider.ollama]
kind = "openai-compatible"
base_url = "http://127.0.0.1:11434/v1/"
name = "Ollama"
route = "direct"
needs_key = false

[[provider.ollama.models]]
id = "qwen3:8b"
context = 32_768
output = 4096
reasoning = true
price_input = 0.25
price_output = 2

[provider.openai]
route = "direct"
"#;

fn mistakes(text: &str) -> Vec<String> {
    Config::parse(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = Config::parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.driver, config.session.idle_timeout_millis), (DriverName::Docker, 900_000));
}

#[test]
fn bounds_that_would_not_work_are_mistakes() {
    let text = "[pool]\nsize = 65\nmax_age = \"1s\"\n[history]\ncompact_after = 1\nmax = \"1KiB\"\n[journal]\nmax = \"1MiB\"\n[daemon]\nmax_running = 10001\n";
    assert_eq!(mistakes(text).len(), 6, "{:?}", mistakes(text));
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(WHOLE).unwrap();
    assert_eq!((config.driver, config.docker.link), (DriverName::Local, LinkMode::Exec));
    assert_eq!(config.session.idle_timeout_millis, 5_400_000);
    assert_eq!((config.session.limits.cpu_millis, config.session.limits.pids), (1_500, 300));
    assert_eq!(config.session.limits.memory_bytes, 3 << 30);
    assert_eq!(config.session.idle_action, IdleAction::Stop);
    assert_eq!((config.daemon.stop_grace_millis, config.daemon.on_shutdown), (500, OnShutdown::Stop));
    assert_eq!((config.daemon.max_running, config.daemon.memory_budget_bytes), (5, 12 << 30));
    assert_eq!(config.pool, PoolConfig { size: 3, max_age_millis: 5_400_000 });
    assert_eq!(config.history, HistoryConfig { compact_after: 500, max_bytes: 16 << 20 });
    assert_eq!((config.store.reserve_bytes, config.journal.max_bytes), (1 << 30, 32 << 20));
    let ollama = &config.providers[0];
    assert_eq!((ollama.id.as_str(), ollama.needs_key), ("ollama", Some(false)));
    assert_eq!(ollama.base_url.as_deref(), Some("http://127.0.0.1:11434/v1"));
    assert_eq!((ollama.models[0].context, ollama.models[0].price.input, ollama.models[0].price.output), (32_768, 250_000, 2_000_000));
    assert_eq!(ollama.models[0].name, "qwen3:8b");
    assert_eq!(config.providers[1].route, Some(Route::Direct));
}

#[test]
fn what_is_printed_reads_as_the_same() {
    for text in ["", WHOLE] {
        let config = Config::parse(text).unwrap();
        let mut again = Config::parse(&config.to_toml()).unwrap();
        for (again, first) in again.providers.iter_mut().zip(&config.providers) {
            again.line = first.line;
        }
        assert_eq!(again, config);
    }
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let found = mistakes(
        r#"drivr = "docker"
[docker]
link = "sockt"
image = 7
[session]
memory = "100MiB"
idle_timeout = "soon"
cpus = -1
model = "gpt"
[provider.Bad]
[provider.demo]
[provider.mine]
base_url = "http://example.org/v1"
[[provider.mine.models]]
name = "no id"
contxt = 5
"#,
    );
    let expected = [
        "line 1: drivr is not a known key; did you mean driver?",
        "line 3: docker.link: \"sockt\" is not known (expected auto, socket, exec); did you mean \"socket\"?",
        "line 4: docker.image: expected a text in quotes, found integer",
        "line 6: session.memory: \"100MiB\" is less than the agent needs (512MiB)",
        "line 7: session.idle_timeout: \"soon\" is not a duration",
        "line 8: session.cpus: expected a number that is not negative",
        "line 9: session.model: \"gpt\" is not a model",
        "line 10: provider.Bad: a provider's name",
        "line 11: provider.demo: the demo is built in",
        "line 13: provider.mine.base_url: \"http://example.org/v1\" would send prompts and keys unencrypted",
        "line 14: provider.mine.models[0]: the key id is missing",
        "line 16: provider.mine.models[0].contxt is not a known key; did you mean context?",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

#[test]
fn text_that_is_no_toml_is_told_with_its_line() {
    let found = mistakes("driver = \"docker\"\n[session\nx = = 1\n");
    assert!(found.iter().any(|mistake| mistake.starts_with("line 2: ")), "{found:?}");
    assert!(Config::parse(&" ".repeat(CONFIG_MAX_BYTES + 1)).is_err());
}

#[test]
fn base_urls_are_checked_and_never_repeat_a_password() {
    let check = |url: &str| value::base_url(url, false);
    for good in
        ["https://api.example.org/v1", "http://localhost:1234", "http://[::1]:80/v1", "http://127.9.9.9/v1/", "https://10.0.0.1:8443"]
    {
        assert!(check(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "api.example.org",
        "ftp://x/v1",
        "https://",
        "https:///v1",
        "https://x:0/",
        "https://x:99999/",
        "https://x:/v1",
        "https://x/v1?k=1",
        "https://x/#f",
        "https://x/../y",
        "http://10.0.0.1/v1",
        "http://localhost.example.org/",
        "https://[::1",
        "https://[::1]x/",
        "https://a b/",
        "https://é/",
    ] {
        assert!(check(bad).is_err(), "{bad}");
    }
    assert!(!check("https://me:hunter2@x/v1").unwrap_err().contains("hunter2"));
    assert!(value::base_url("http://10.0.0.1/v1", true).is_ok());
}

#[test]
fn durations_and_sizes_print_as_they_are_read() {
    for (text, millis) in [("0", 0), ("15m", 900_000), ("90s", 90_000), ("1ms", 1), ("2d", 172_800_000)] {
        assert_eq!(value::duration(text).unwrap(), millis);
        assert_eq!(value::duration(&value::print_duration(millis)).unwrap(), millis);
    }
    for bad in ["", "m", "15", "15x", "-1s", "99999999999999999999s", "400d", "1.5h", "1m 2s"] {
        assert!(value::duration(bad).is_err(), "{bad}");
    }
    for bad in ["", "GiB", "2G", "2", "-1GiB", "99999999999999999999GiB"] {
        assert!(value::size(bad).is_err(), "{bad}");
    }
    assert_eq!(value::size(&value::print_size(3 << 29)).unwrap(), 3 << 29);
}

#[test]
fn the_environment_outdoes_the_file_but_docker_host_does_not() {
    let env = |pairs: &[(&str, &str)]| {
        let map: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |name: &str| map.get(name).cloned()
    };
    let mut config = Config::parse(WHOLE).unwrap();
    config.overlay(env(&[("OPENAGENT_DRIVER", "docker"), ("OPENAGENT_LOG", "trace"), ("DOCKER_HOST", "tcp://other:1")])).unwrap();
    assert_eq!((config.driver, config.daemon.log.as_str()), (DriverName::Docker, "trace"));
    assert_eq!(config.docker.endpoint.as_deref(), Some("unix:///run/user/1000/docker.sock"));
    let mut config = Config::default();
    config.overlay(env(&[("DOCKER_HOST", "tcp://other:1"), ("OPENAGENT_IMAGE", "")])).unwrap();
    assert_eq!(config.docker, DockerConfig { endpoint: Some("tcp://other:1".to_owned()), ..DockerConfig::default() });
    assert_eq!(config.overlay(env(&[("OPENAGENT_DRIVER", "podman"), ("OPENAGENT_DOCKER_HOST", "nonsense")])).unwrap_err().len(), 2);
}

mod folders {
    use super::*;

    fn resolve(pairs: &[(&str, &str)], platform: Platform) -> Result<Paths, Vec<ConfigError>> {
        let map: HashMap<&str, &str> = pairs.iter().copied().collect();
        Paths::resolve(|name| map.get(name).map(|value| (*value).to_owned()), 1000, platform)
    }

    #[test]
    fn follow_the_conventions_of_the_system() {
        let linux = resolve(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/1000")], Platform::Linux).unwrap();
        assert_eq!(linux.config_file.to_str(), Some("/home/u/.config/openagent/config.toml"));
        assert_eq!(linux.store_dir.to_str(), Some("/home/u/.local/state/openagent/db"));
        assert_eq!(linux.socket.to_str(), Some("/run/user/1000/openagent/openagentd.sock"));
        assert_eq!(linux.master_key_file.to_str(), Some("/home/u/.local/share/openagent/master.key"));
        let mac = resolve(&[("HOME", "/Users/u"), ("TMPDIR", "/var/folders/x/T/")], Platform::MacOs).unwrap();
        assert_eq!(mac.state_dir.to_str(), Some("/Users/u/Library/Application Support/openagent/state"));
        assert_eq!(mac.runtime_dir.to_str(), Some("/var/folders/x/T/openagent-1000"));
    }

    #[test]
    fn own_variables_come_first_and_relative_ones_are_mistakes() {
        let own =
            [("OPENAGENT_CONFIG", "/c.toml"), ("OPENAGENT_STATE_DIR", "/s"), ("OPENAGENT_DATA_DIR", "/d"), ("OPENAGENT_RUNTIME_DIR", "/r")];
        let paths = resolve(&own, Platform::Linux).unwrap();
        assert_eq!((paths.store_dir.to_str(), paths.socket.to_str()), (Some("/s/db"), Some("/r/openagentd.sock")));
        assert_eq!(
            resolve(&[("OPENAGENT_STATE_DIR", "s"), ("OPENAGENT_DATA_DIR", "d"), ("HOME", "/h")], Platform::Linux).unwrap_err().len(),
            2
        );
        let relative = resolve(&[("HOME", "/h"), ("XDG_STATE_HOME", "relative")], Platform::Linux).unwrap();
        assert_eq!(relative.state_dir.to_str(), Some("/h/.local/state/openagent"));
    }

    #[test]
    fn without_a_home_with_a_long_socket_or_with_the_key_in_the_store_there_are_none() {
        assert_eq!(resolve(&[], Platform::Linux).unwrap_err().len(), 1);
        let long = format!("/{}", "x".repeat(100));
        assert!(resolve(&[("HOME", "/h"), ("OPENAGENT_RUNTIME_DIR", &long)], Platform::Linux).unwrap_err()[0].message.contains("shorter"));
        let inside = [("HOME", "/h"), ("OPENAGENT_STATE_DIR", "/s"), ("OPENAGENT_MASTER_KEY_FILE", "/s/db/key")];
        assert!(resolve(&inside, Platform::Linux).is_err());
    }
}
