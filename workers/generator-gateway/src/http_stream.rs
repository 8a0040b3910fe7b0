//! A streamed reply: events as the pieces come. When the client goes, the body is dropped, and with it the
//! receiver that the provider watches: the upstream call ends at once.

use crate::engine::Answered;
use crate::http_wire::Events as Writer;
use crate::provider::CallFailure;
use bytes::Bytes;
use http_body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::{mpsc, oneshot};

/// How a stream ended.
pub(crate) type End = Result<Answered, CallFailure>;

/// The body of a stream.
pub struct Events {
    pub(crate) writer: Writer,
    /// What is sent before the next piece.
    pub(crate) first: Option<String>,
    pub(crate) pieces: mpsc::Receiver<String>,
    pub(crate) end: oneshot::Receiver<End>,
    pub(crate) ended: bool,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |text: String| Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
        if let Some(first) = self.first.take() {
            return frame(first);
        }
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(mut piece) = ready!(self.pieces.poll_recv(context)) {
            // what has come in the meantime goes along
            while let Ok(next) = self.pieces.try_recv() {
                piece.push_str(&next);
            }
            return frame(self.writer.piece(&piece));
        }
        let end = ready!(Pin::new(&mut self.end).poll(context));
        self.ended = true;
        match end {
            Ok(Ok(answered)) => frame(self.writer.close(&answered.completion)),
            Ok(Err(failure)) => frame(Writer::failed(&failure)),
            // the gateway is stopping: the stream just breaks off, without its end
            Err(_) => Poll::Ready(None),
        }
    }
}
