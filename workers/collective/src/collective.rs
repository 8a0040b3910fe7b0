//! The trait and the algorithms on it.

use crate::{CollectiveError, Result};
use std::ops::Range;
use std::time::Instant;

/// What a message belongs to, so that ranks that are out of step are told at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// [`Collective::barrier`].
    Barrier = 1,
    /// [`Collective::broadcast`].
    Broadcast,
    /// [`Collective::all_gather`].
    AllGather,
    /// [`Collective::reduce_scatter`].
    ReduceScatter,
    /// [`Collective::fold`].
    Fold,
}

/// One rank's view of a team.
///
/// All ranks call the same operations in the same order. Sums are taken in rank order: `((r0 + r1) + r2) + …`.
pub trait Collective: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks in all.
    fn size(&self) -> usize;

    /// Hands a message to another rank; returns once it may be forgotten here.
    fn send_bytes(&self, to: usize, tag: u8, bytes: Vec<u8>) -> Result<()>;

    /// The next message of another rank.
    fn receive_bytes(&self, from: usize) -> Result<(u8, Vec<u8>)>;

    /// Says goodbye with this rank's exit code and last words: whoever waits for it learns them. 0 is a good end.
    fn leave(&self, code: u8, message: &str);

    /// How another rank ended, if it has.
    fn ended(&self, rank: usize) -> Option<CollectiveError>;

    /// The first rank that ended otherwise than well, without waiting for it.
    fn lost(&self) -> Option<CollectiveError> {
        let ends = (0..self.size()).filter_map(|rank| self.ended(rank));
        ends.into_iter().find(|end| !matches!(end, CollectiveError::Left { code: 0, .. }))
    }

    /// Sends as a part of an operation.
    fn send(&self, to: usize, tag: Tag, bytes: Vec<u8>) -> Result<()> {
        self.send_bytes(to, tag as u8, bytes)
    }

    /// Receives as a part of an operation.
    fn receive(&self, from: usize, tag: Tag) -> Result<Vec<u8>> {
        let (found, bytes) = self.receive_bytes(from)?;
        if found == tag as u8 {
            return Ok(bytes);
        }
        Err(CollectiveError::OutOfStep { rank: from, theirs: format!("message {found}"), ours: format!("{tag:?}") })
    }

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<()> {
        timed("barrier", || {
            for other in others(self.rank(), self.size()) {
                self.send(other, Tag::Barrier, Vec::new())?;
            }
            others(self.rank(), self.size()).try_for_each(|other| self.receive(other, Tag::Barrier).map(drop))
        })
    }

    /// What `root` has, on every rank. Only `root`'s `bytes` are looked at.
    fn broadcast(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>> {
        timed("broadcast", || {
            if self.rank() != root {
                return self.receive(root, Tag::Broadcast);
            }
            for other in others(root, self.size()) {
                self.send(other, Tag::Broadcast, bytes.clone())?;
            }
            Ok(bytes)
        })
    }

    /// What every rank has, in rank order.
    fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        timed("all_gather", || {
            for other in others(self.rank(), self.size()) {
                self.send(other, Tag::AllGather, own.clone())?;
            }
            let mut own = Some(own);
            (0..self.size())
                .map(|rank| match own.take_if(|_| rank == self.rank()) {
                    Some(own) => Ok(own),
                    None => self.receive(rank, Tag::AllGather),
                })
                .collect()
        })
    }

    /// The `rank`-th part of the element-wise sum over all ranks; parts are cut by [`share`]. All ranks bring
    /// equally many values.
    fn reduce_scatter(&self, values: &[f32]) -> Result<Vec<f32>> {
        timed("reduce_scatter", || {
            let part = |rank: usize| &values[share(values.len(), rank, self.size())];
            for other in others(self.rank(), self.size()) {
                self.send(other, Tag::ReduceScatter, to_bytes(part(other)))?;
            }
            let mut sum: Option<Vec<f32>> = None;
            for rank in 0..self.size() {
                let next = if rank == self.rank() {
                    part(rank).to_vec()
                } else {
                    from_bytes(rank, &self.receive(rank, Tag::ReduceScatter)?)?
                };
                sum = Some(match sum {
                    None => next,
                    Some(mut sum) => {
                        add(rank, &mut sum, &next)?;
                        sum
                    }
                });
            }
            Ok(sum.unwrap_or_default())
        })
    }

    /// Replaces the values by their element-wise sum over all ranks.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let own = self.reduce_scatter(values)?;
        let parts = self.all_gather_values(&own)?;
        let found: usize = parts.iter().map(Vec::len).sum();
        if found != values.len() {
            let (theirs, ours) = (format!("{found} values"), format!("{}", values.len()));
            return Err(CollectiveError::OutOfStep { rank: self.rank(), theirs, ours });
        }
        let mut rest = values;
        for part in parts {
            let (here, after) = rest.split_at_mut(part.len());
            here.copy_from_slice(&part);
            rest = after;
        }
        Ok(())
    }

    /// Every rank's values, in rank order; they may differ in number.
    fn all_gather_values(&self, own: &[f32]) -> Result<Vec<Vec<f32>>> {
        let all = self.all_gather(to_bytes(own))?;
        all.into_iter().enumerate().map(|(rank, bytes)| from_bytes(rank, &bytes)).collect()
    }

    /// For each of several sums: adds this rank's parts one by one to the sum of the ranks before, and hands the last
    /// rank's sum to the sum's owner. That is the sum of all parts in rank order, as one process would take it.
    /// Others get nothing. A rank without parts passes a sum on; no part at all gives no sum.
    ///
    /// `parts` is asked for this rank's parts of a sum when its turn has come. Sums follow each other through the
    /// ranks, so all ranks add at the same time.
    fn fold(&self, owners: &[usize], parts: &mut dyn FnMut(usize) -> Vec<Vec<f32>>) -> Result<Vec<Option<Vec<f32>>>> {
        timed("fold", || {
            let (rank, last) = (self.rank(), self.size() - 1);
            let mut sums = vec![None; owners.len()];
            for (at, owner) in owners.iter().enumerate() {
                let before = if rank == 0 { None } else { some(rank - 1, &self.receive(rank - 1, Tag::Fold)?)? };
                let mut own = parts(at).into_iter();
                let mut sum = before.or_else(|| own.next());
                if let Some(sum) = &mut sum {
                    own.try_for_each(|part| add(rank, sum, &part))?;
                }
                if rank < last {
                    self.send(rank + 1, Tag::Fold, optional(sum.as_deref()))?;
                } else if *owner < last {
                    self.send(*owner, Tag::Fold, optional(sum.as_deref()))?;
                } else {
                    sums[at] = sum;
                }
            }
            if rank < last {
                for (at, _) in owners.iter().enumerate().filter(|(_, owner)| **owner == rank) {
                    sums[at] = some(last, &self.receive(last, Tag::Fold)?)?;
                }
            }
            Ok(sums)
        })
    }
}

/// The part of `count` things in a row that falls to a rank: parts are contiguous, in rank order, and differ by one
/// at most.
pub fn share(count: usize, rank: usize, size: usize) -> Range<usize> {
    rank * count / size..(rank + 1) * count / size
}

/// The rank that [`share`] gives thing `at` to.
pub fn chunk(at: usize, count: usize, size: usize) -> usize {
    (0..size).find(|rank| share(count, *rank, size).contains(&at)).unwrap_or_default()
}

fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    // each begins behind itself, so that not all send to the same one first
    (1..size).map(move |step| (rank + step) % size)
}

fn timed<T>(operation: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    s3_telemetry::metrics().training_collective_seconds.with_label_values(&[operation]).observe(seconds);
    result
}

/// Little-endian, as every machine that this runs on keeps them.
fn to_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn from_bytes(rank: usize, bytes: &[u8]) -> Result<Vec<f32>> {
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        let (theirs, ours) = (format!("{} bytes", bytes.len()), "whole values".to_owned());
        return Err(CollectiveError::OutOfStep { rank, theirs, ours });
    }
    Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

/// Values or none: none is a single byte.
fn optional(values: Option<&[f32]>) -> Vec<u8> {
    values.map_or_else(|| vec![0], to_bytes)
}

fn some(rank: usize, bytes: &[u8]) -> Result<Option<Vec<f32>>> {
    if bytes.len() == 1 { Ok(None) } else { from_bytes(rank, bytes).map(Some) }
}

fn add(rank: usize, sum: &mut [f32], next: &[f32]) -> Result<()> {
    if sum.len() != next.len() {
        let (theirs, ours) = (format!("{} values", next.len()), format!("{}", sum.len()));
        return Err(CollectiveError::OutOfStep { rank, theirs, ours });
    }
    sum.iter_mut().zip(next).for_each(|(sum, next)| *sum += next);
    Ok(())
}
