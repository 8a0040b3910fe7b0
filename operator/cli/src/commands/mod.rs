//! One file per command.

pub mod ask;
pub mod compare;
pub mod index;
pub mod logs;
pub mod plan;
pub mod replay;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod status;
pub mod why;
