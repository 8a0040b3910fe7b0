//! Ranks as threads of one process.

use crate::mailbox::{Ended, Mailbox, Message};
use crate::{Collective, CollectiveError, Result, Stop};
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};

/// The way to another rank, if it is another and this one has not left.
type Way = Option<(Sender<Message>, Ended)>;

/// One rank of a team within a process.
pub struct Local {
    rank: usize,
    size: usize,
    stop: Stop,
    /// To every rank; none to itself, and none once this rank has left.
    out: Mutex<Vec<Way>>,
    boxes: Vec<Option<Mailbox>>,
}

impl Local {
    /// A whole team; each member goes to a thread of its own.
    pub fn team(size: usize, stop: &Stop) -> Vec<Self> {
        let mut out: Vec<Vec<Way>> = (0..size).map(|_| Vec::new()).collect();
        let mut boxes: Vec<Vec<Option<Mailbox>>> = (0..size).map(|_| Vec::new()).collect();
        for (to, own) in boxes.iter_mut().enumerate() {
            for (from, out) in out.iter_mut().enumerate() {
                let (sender, mailbox) = if from == to {
                    (None, None)
                } else {
                    let (sender, ended, mailbox) = Mailbox::new(from);
                    (Some((sender, ended)), Some(mailbox))
                };
                out.push(sender);
                own.push(mailbox);
            }
        }
        let ranks = out.into_iter().zip(boxes).enumerate();
        ranks.map(|(rank, (out, boxes))| Self { rank, size, stop: stop.clone(), out: Mutex::new(out), boxes }).collect()
    }

    /// A team of one.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, stop: std::sync::Arc::new(|| false), out: Mutex::new(vec![None]), boxes: vec![None] }
    }
}

impl Collective for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send_bytes(&self, to: usize, tag: u8, bytes: Vec<u8>) -> Result<()> {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match out.get(to).and_then(Option::as_ref) {
            Some((sender, _)) => sender.send(Message { tag, bytes }).is_ok(),
            None => false,
        };
        drop(out);
        if sent {
            return Ok(());
        }
        let vanished = || CollectiveError::Lost { rank: to, reason: "it no longer listens".into() };
        Err(self.ended(to).unwrap_or_else(vanished))
    }

    fn receive_bytes(&self, from: usize) -> Result<(u8, Vec<u8>)> {
        let Some(mailbox) = self.boxes.get(from).and_then(Option::as_ref) else {
            return Err(CollectiveError::Input(format!("rank {from} is no other rank of {}", self.size)));
        };
        mailbox.receive(&self.stop).map(|message| (message.tag, message.bytes))
    }

    fn leave(&self, code: u8, message: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, ended) in out.iter().flatten() {
            ended.note(CollectiveError::Left { rank: self.rank, code, message: message.to_owned() });
        }
        out.iter_mut().for_each(|way| *way = None);
    }

    fn ended(&self, rank: usize) -> Option<CollectiveError> {
        self.boxes.get(rank)?.as_ref()?.ended()
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let out = self.out.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, ended) in out.iter().flatten() {
            ended.note(CollectiveError::Lost { rank: self.rank, reason: "its thread ended without a word".into() });
        }
    }
}
