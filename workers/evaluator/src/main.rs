//! s3-evaluator
fn main() {}
