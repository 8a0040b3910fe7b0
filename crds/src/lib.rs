//! s3-crds
