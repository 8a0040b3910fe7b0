//! s3-generator-gateway
fn main() {}
