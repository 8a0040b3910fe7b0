//! What came from one other rank, in the order in which it was sent, and how it ended.

use crate::{CollectiveError, Result, Stop};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often one who waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// One message.
pub struct Message {
    pub tag: u8,
    pub bytes: Vec<u8>,
}

/// How the other rank ended, once it has.
#[derive(Clone, Default)]
pub struct Ended(Arc<Mutex<Option<CollectiveError>>>);

impl Ended {
    /// Notes the first reason.
    pub fn note(&self, why: CollectiveError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    pub fn why(&self) -> Option<CollectiveError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The receiving end. What was sent before the end is still received.
pub struct Mailbox {
    rank: usize,
    messages: Mutex<Receiver<Message>>,
    ended: Ended,
}

impl Mailbox {
    /// A mailbox for what `rank` sends.
    pub fn new(rank: usize) -> (Sender<Message>, Ended, Self) {
        let (sender, messages) = channel();
        let ended = Ended::default();
        (sender, ended.clone(), Self { rank, messages: Mutex::new(messages), ended })
    }

    pub fn ended(&self) -> Option<CollectiveError> {
        self.ended.why()
    }

    pub fn receive(&self, stop: &Stop) -> Result<Message> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match messages.recv_timeout(LOOK) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) if stop() => return Err(CollectiveError::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let vanished =
                        || CollectiveError::Lost { rank: self.rank, reason: "it ended without a word".into() };
                    return Err(self.ended.why().unwrap_or_else(vanished));
                }
            }
        }
    }
}
