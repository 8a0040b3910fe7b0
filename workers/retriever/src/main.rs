//! s3-retriever
fn main() {}
