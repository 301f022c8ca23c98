//! Values as people write them: durations, sizes, addresses, names out of a list.

use super::nearest;

/// Longest duration, in milliseconds: a year.
const DURATION_MAX_MILLIS: u64 = 365 * 24 * 3_600 * 1_000;

/// Longest address or path.
const TEXT_MAX_BYTES: usize = 4_096;

/// A duration such as `15m`, in milliseconds; `0` alone needs no unit.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is not a duration (expected such as \"90s\", \"15m\", \"1h30m\" or \"0\")");
    if text == "0" {
        return Ok(0);
    }
    let (mut sum, mut rest) = (0u64, text);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| expected())?;
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let unit = match &rest[digits..digits + letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(expected()),
        };
        sum = number.checked_mul(unit).and_then(|part| sum.checked_add(part)).ok_or_else(expected)?;
        rest = &rest[digits + letters..];
    }
    match sum {
        _ if text.is_empty() => Err(expected()),
        0..=DURATION_MAX_MILLIS => Ok(sum),
        _ => Err(format!("{text:?} is longer than a year")),
    }
}

/// A duration in the largest unit that needs no fraction.
pub(super) fn print_duration(millis: u64) -> String {
    if millis == 0 {
        return "0".to_owned();
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")];
    let (unit, name) = units.into_iter().find(|(unit, _)| millis.is_multiple_of(*unit)).unwrap_or((1, "ms"));
    format!("{}{name}", millis / unit)
}

const SIZE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A size such as `2GiB`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let expected = || format!("{text:?} is not a size (expected such as \"512MiB\" or \"2GiB\")");
    let (unit, bytes) = SIZE_UNITS.into_iter().find(|(unit, _)| text.ends_with(unit)).ok_or_else(expected)?;
    let number: u64 = text[..text.len() - unit.len()].trim_end().parse().map_err(|_| expected())?;
    number.checked_mul(bytes).ok_or_else(expected)
}

/// A size in the largest unit that needs no fraction.
pub(super) fn print_size(bytes: u64) -> String {
    let (name, unit) = SIZE_UNITS.into_iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)).unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

/// One of a list of names.
pub(super) fn one_of<T: Copy, const N: usize>(text: &str, known: [(&str, T); N]) -> Result<T, String> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    let names = known.map(|(name, _)| name);
    let meant = nearest(text, names).map(|name| format!("; did you mean {name:?}?")).unwrap_or_default();
    Err(format!("{text:?} is not known (expected {}){meant}", names.join(", ")))
}

/// A provider's base URL, without a slash at its end. Plain http is for this machine only, unless `insecure`: keys and prompts travel on it.
pub(super) fn base_url(text: &str, insecure: bool) -> Result<String, String> {
    let refuse = |why: &str| Err(format!("{text:?} {why}"));
    if text.len() > TEXT_MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("is longer than 4 KiB, or has spaces or letters that an address cannot have".to_owned());
    }
    // Said without the text: what stands before an @ may be a password.
    if text.contains('@') {
        return Err("must not contain a user name or password; set the key with: openagent keys set".to_owned());
    }
    let Some((scheme, rest)) = text.split_once("://") else { return refuse("is not an address (expected https://...)") };
    if text.contains(['?', '#']) {
        return refuse("must not have a query or a fragment");
    }
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => {
            (host, port.strip_prefix(':').or((port.is_empty()).then_some("")).ok_or_else(|| format!("{text:?} has no valid port"))?)
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let is_port = port.is_empty() && !authority.ends_with(':') || port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = if authority.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
    };
    if !is_host {
        return refuse("has no valid host");
    }
    if !is_port {
        return refuse("has no valid port");
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return refuse("has a path with \"..\" or \".\" in it");
    }
    let is_loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match scheme {
        "https" => {}
        "http" if is_loopback || insecure => {}
        "http" => return refuse("would send prompts and keys unencrypted to another machine (use https, or set insecure = true)"),
        _ => return refuse("is neither http nor https"),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The address of a container engine.
pub(super) fn endpoint(text: &str) -> Result<(), String> {
    let is_known = ["unix://", "tcp://", "http://", "https://"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    if is_known || text.starts_with('/') && text.len() > 1 {
        return Ok(());
    }
    Err(format!("{:?} is not an address (expected unix:///path, or tcp://host:port)", text.chars().take(100).collect::<String>()))
}
