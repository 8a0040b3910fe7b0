//! s3-tests
