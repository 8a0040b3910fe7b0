//! s3-trainer
fn main() {}
