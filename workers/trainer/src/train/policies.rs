//! The policies that rounds under way are played with.
//!
//! A round that is played ahead needs the policy of some updates ago. So the newest ones are kept in memory, and
//! a checkpoint holds those that a resumed run cannot make again: the rounds after it are then played by the same
//! policies as if nothing had happened.

use candle_core::Tensor;
use s3_model::Decoder;
use s3_rollout::RolloutError;
use std::collections::BTreeMap;

/// The policies after the last updates.
pub struct Policies {
    staleness: u32,
    /// By updates done: the policy, and the optimiser steps behind it.
    kept: BTreeMap<u32, (Decoder, u64)>,
}

impl Policies {
    /// None yet; rounds are played by policies of at most `staleness` updates ago.
    pub fn new(staleness: u32) -> Self {
        Self { staleness, kept: BTreeMap::new() }
    }

    /// Keeps the policy after `updates`, and forgets those that no round will need.
    pub fn keep(&mut self, updates: u32, decoder: &Decoder, optimizer_steps: u64) {
        self.kept.retain(|older, _| older.saturating_add(self.staleness) >= updates);
        self.kept.insert(updates, (decoder.clone(), optimizer_steps));
    }

    /// Lets go of policies that are behind: without staleness the rounds of the next step begin with a newer one.
    pub fn release(&mut self) {
        if self.staleness == 0 {
            self.kept.clear();
        }
    }

    /// The policy after `updates`.
    pub fn of(&self, updates: u32) -> Result<&Decoder, RolloutError> {
        Ok(&self.get(updates)?.0)
    }

    /// Optimiser steps from that policy to `now`.
    pub fn behind(&self, updates: u32, now: u64) -> Result<u64, RolloutError> {
        Ok(now.saturating_sub(self.get(updates)?.1))
    }

    fn get(&self, updates: u32) -> Result<&(Decoder, u64), RolloutError> {
        let reason = || format!("the policy after {updates} updates is gone");
        self.kept.get(&updates).ok_or_else(|| RolloutError::Thread { reason: reason() })
    }

    /// What a checkpoint after `updates` needs besides its own policy: (updates, optimiser steps, tensors).
    pub fn earlier(&self, updates: u32) -> impl Iterator<Item = (u32, u64, BTreeMap<String, Tensor>)> + use<'_> {
        let first = updates.saturating_sub(self.staleness);
        self.kept.range(first..updates).map(|(at, (decoder, steps))| (*at, *steps, decoder.trained_tensors()))
    }
}
