//! s3-plan
