//! Compiles the service definitions in pure Rust: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/s3.proto", "proto/progress.proto"], ["proto"])?;
    // servers show it by reflection
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("s3.descriptor"), prost::Message::encode_to_vec(&files))?;
    // a server that lacks a call says so; fakes of tests need not grow with the services
    tonic_prost_build::configure().generate_default_stubs(true).compile_fds(files)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
