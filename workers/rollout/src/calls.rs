//! Calls to other workers while the caller goes on: threads that take work from a queue and send what came of it.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

/// One call; it may block.
pub(crate) type Call<'s, T> = Box<dyn FnOnce() -> T + Send + 's>;

/// A queue of calls and whether it is closed.
pub(crate) struct Calls<'s, T> {
    queue: Mutex<(VecDeque<Call<'s, T>>, bool)>,
    more: Condvar,
}

impl<'s, T: Send> Calls<'s, T> {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::default(), more: Condvar::new() }
    }

    fn queue(&self) -> MutexGuard<'_, (VecDeque<Call<'s, T>>, bool)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `threads` that make the calls, in the order they were asked for. A thread that dies says so by
    /// sending none.
    pub(crate) fn serve<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        threads: usize,
        sender: &Sender<Option<T>>,
    ) where
        T: 'scope,
        's: 'scope,
    {
        for _ in 0..threads {
            let answers = Answers(sender.clone());
            scope.spawn(move || {
                while let Some(call) = self.next() {
                    // nobody waits any more: the round is over
                    let _ = answers.0.send(Some(call()));
                }
            });
        }
    }

    fn next(&self) -> Option<Call<'s, T>> {
        let mut queue = self.queue();
        loop {
            if queue.1 {
                return None;
            }
            if let Some(call) = queue.0.pop_front() {
                return Some(call);
            }
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks for a call.
    pub(crate) fn ask(&self, call: Call<'s, T>) {
        self.queue().0.push_back(call);
        self.more.notify_one();
    }

    /// Ends the threads; calls that have not begun are dropped.
    pub(crate) fn close(&self) {
        self.queue().1 = true;
        self.more.notify_all();
    }
}

/// Closes the queue however its owner leaves.
pub(crate) struct Closing<'c, 's, T: Send>(pub(crate) &'c Calls<'s, T>);

impl<T: Send> Drop for Closing<'_, '_, T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Tells of a thread that panicked, so that nobody waits for its answer for ever.
struct Answers<T>(Sender<Option<T>>);

impl<T> Drop for Answers<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.send(None);
        }
    }
}
