//! The operator: watches the three kinds, plans them, applies what the plan says, and writes what it sees.

pub mod cache;
pub mod clock;
pub mod kept;
pub mod key;
pub mod lease;
pub mod ledger;
pub mod metrics_page;
pub mod operator;
pub mod options;
pub mod progress;
pub mod queue;
pub mod reconcile;
pub mod scene;
pub mod sharing;
pub mod slim;
pub mod teller;
pub mod values;
pub mod world;
pub mod write;
