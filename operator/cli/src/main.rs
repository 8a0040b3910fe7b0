//! s3-cli
fn main() {}
