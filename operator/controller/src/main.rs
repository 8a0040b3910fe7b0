//! s3-operator
fn main() {}
