//! s3-rollout
