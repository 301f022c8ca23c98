//! Compiles the .proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["daemon", "event", "permission", "provider", "session", "terminal", "usage", "vault"]
        .map(|name| format!("openagent/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("openagent.bin"), prost_encode(&descriptors))?;
    tonic_prost_build::configure()
        // The one message that carries a secret must not be printable by accident.
        .skip_debug(["openagent.v1.SetKeyRequest"])
        .compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}
