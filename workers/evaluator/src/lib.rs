//! Evaluation that can be trusted: methods × questions × metrics, with intervals and paired tests.
//!
//! * [`questions`] chooses what is asked, [`filtered`] refuses sets chosen by whether the baseline is right,
//!   [`identity`] freezes both before anything is evaluated.
//! * [`arms`] are the compared methods, [`units`] evaluates them chunk by chunk with a journal.
//! * [`results`] and [`summary`] are what is published, [`measure`] what is measured beyond it, [`statistics`] the
//!   mathematics, [`report`] the page, [`export`] and [`matrix`] the tables for other programs and for papers,
//!   [`compare`] two runs question by question, [`published`] the reference's figures beside a run's.

pub mod arms;
pub mod ask;
pub mod calls;
pub mod compare;
mod error;
pub mod export;
pub mod filtered;
pub mod identity;
pub mod matrix;
pub mod measure;
pub mod pieces;
pub mod pin;
pub mod published;
pub mod questions;
pub mod report;
pub mod results;
pub mod run;
pub mod serve;
pub mod start;
pub mod statistics;
pub mod summary;
pub mod units;

pub use error::EvalError;
