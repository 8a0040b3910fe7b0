//! One exchange with one endpoint: what is sent, what comes back, and what of it is charged.

use super::{AGENT, DEADLINE_HEADER, Inner, Mode, estimate};
use crate::client::{head, media, timed_out, transport, whole};
use crate::openai_wire::{Partial, error_line};
use crate::plain::{Broken, Flow, REPLY_LIMIT};
use crate::provider::{Call, Completion, FailureKind, Order, Usage};
use crate::retry::{Attempt, classify, retry_after};
use crate::route::Site;
use crate::sse::Events;
use crate::wire::Outgoing;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

impl Inner {
    /// One request to one place, whole or in pieces.
    pub(super) async fn exchange(
        &self,
        site: &Site,
        call: &Call,
        order: &Order,
        mode: Mode<'_>,
        stream: bool,
    ) -> Result<Completion, Attempt> {
        let mut outgoing = self.wire.outgoing(&site.url, call, stream, &self.keys).await?;
        let secret = outgoing.secret.take();
        outgoing.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
        if let Some(left) = order.left() {
            let left = HeaderValue::from(left.as_millis() as u64);
            outgoing.headers.push((HeaderName::from_static(DEADLINE_HEADER), left));
        }
        let result = if stream {
            // boxed, as the other way is taken by nearly all calls and carries no room for this one
            Box::pin(self.piecewise(site, outgoing, call, order, mode)).await
        } else {
            self.whole(site, outgoing, call, order).await
        };
        let result = result.map_err(|mut failed| {
            if let Some(secret) = secret.as_deref().filter(|secret| failed.message.contains(secret)) {
                failed.message = failed.message.replace(secret, "[key]");
            }
            failed
        })?;
        if let Mode::Pieces(pieces, sent) = mode
            && !stream
        {
            sent.store(true, Ordering::Relaxed);
            // a caller that is gone gets nothing; the answer is kept all the same
            let _ = pieces.send(result.text.clone()).await;
        }
        Ok(result)
    }

    async fn piecewise(
        &self,
        site: &Site,
        outgoing: Outgoing<'_>,
        call: &Call,
        order: &Order,
        mode: Mode<'_>,
    ) -> Result<Completion, Attempt> {
        let Mode::Pieces(pieces, sent) = mode else { return Err(Attempt::refused("no stream was asked for")) };
        tokio::select! {
            biased;
            () = pieces.closed() => Err(Attempt::refused("the caller went away")),
            result = self.streamed(site, outgoing, call, order, (pieces, sent)) => result,
        }
    }

    async fn whole(
        &self,
        site: &Site,
        outgoing: Outgoing<'_>,
        call: &Call,
        order: &Order,
    ) -> Result<Completion, Attempt> {
        if let Some(plain) = &site.plain {
            let reply = plain.post(&self.reach, &outgoing.url, &outgoing.headers, &outgoing.body).await;
            let reply = reply.map_err(|broken| match broken {
                Broken::Before(failed) => failed,
                Broken::After(status, failed) => charged(status, failed, call, order),
            })?;
            let said = Some(reply.retry_after()).filter(|value| !value.is_empty());
            let hint = said.and_then(|value| retry_after(value, SystemTime::now()));
            return self.completion(reply.status, hint, reply.content_type(), reply.body(), call, order);
        }
        Box::pin(self.whole_over_tls(outgoing, call, order)).await
    }

    async fn whole_over_tls(&self, outgoing: Outgoing<'_>, call: &Call, order: &Order) -> Result<Completion, Attempt> {
        let response = self.request(outgoing).send().await.map_err(|e| transport(&e))?;
        let reply = whole(response).await.map_err(|(status, failed)| charged(status, failed, call, order))?;
        self.completion(reply.status, reply.hint, &reply.media, &reply.body, call, order)
    }

    /// The request as the client with TLS and streams sends it.
    fn request(&self, outgoing: Outgoing<'_>) -> reqwest::RequestBuilder {
        let headers: HeaderMap = outgoing.headers.into_iter().collect();
        self.client.post(outgoing.url.into_owned()).headers(headers).body(outgoing.body)
    }

    /// Reads a whole reply, and charges one that the provider charges for.
    fn completion(
        &self,
        status: u16,
        hint: Option<Duration>,
        content_type: &str,
        body: &[u8],
        call: &Call,
        order: &Order,
    ) -> Result<Completion, Attempt> {
        if status != 200 {
            return Err(classify(status, hint, format!("status {status}: {}", error_line(body))));
        }
        let read = if is_json(content_type) {
            self.wire.read(body, call)
        } else {
            let message = format!("the reply is {:?}, not JSON", media(content_type));
            Err(Attempt::again(FailureKind::Malformed, "malformed", message))
        };
        order.meter.add(match &read {
            Ok(completion) => Usage::of(completion),
            Err(_) => Usage { calls: 1, prompt: estimate(call), answer: 0 },
        });
        read
    }

    /// Asks for a stream: its status, hint and content type, and what comes.
    async fn open<'a>(
        &self,
        site: &'a Site,
        outgoing: Outgoing<'_>,
    ) -> Result<(u16, Option<Duration>, String, Source<'a>), Attempt> {
        if let Some(plain) = &site.plain {
            let flow = plain.open(&self.reach, &outgoing.url, &outgoing.headers, &outgoing.body).await?;
            let hint = retry_after(&flow.retry_after, SystemTime::now());
            return Ok((flow.status(), hint, media(&flow.media).to_ascii_lowercase(), Source::Plain(flow)));
        }
        let response = self.request(outgoing).send().await.map_err(|e| transport(&e))?;
        let (status, hint, media) = head(response.status().as_u16(), response.headers());
        Ok((status, hint, media, Source::Tls(response)))
    }

    async fn streamed(
        &self,
        site: &Site,
        outgoing: Outgoing<'_>,
        call: &Call,
        order: &Order,
        (pieces, sent): (&mpsc::Sender<String>, &AtomicBool),
    ) -> Result<Completion, Attempt> {
        let limit = Duration::from_millis(self.limits.deadline_ms);
        let opened = tokio::time::timeout(limit, self.open(site, outgoing)).await;
        let (status, hint, media, mut source) = opened.map_err(|_| timed_out(limit))??;
        if status != 200 {
            let bytes = tokio::time::timeout(limit, source.rest()).await.map_err(|_| timed_out(limit))??;
            return Err(classify(status, hint, format!("status {status}: {}", error_line(&bytes))));
        }
        let charge = Charge { order, prompt: estimate(call), done: false };
        if media != "text/event-stream" {
            let message = format!("the reply is {media:?}, not a stream of events");
            return Err(Attempt::again(FailureKind::Malformed, "malformed", message));
        }
        let (mut partial, mut events) = (Partial::default(), Events::default());
        while !partial.done {
            let chunk = tokio::time::timeout(limit, source.next()).await.map_err(|_| timed_out(limit))?;
            let Some(chunk) = chunk? else { break };
            let mut fresh = Vec::new();
            let read = events.push(&chunk, |data| {
                fresh.extend(self.wire.event(data, &mut partial)?);
                Ok::<(), Attempt>(())
            });
            let read = read.map_err(|()| {
                Attempt::again(FailureKind::Malformed, "malformed", "an event of the stream is longer than 4 MiB")
            })?;
            for piece in fresh {
                sent.store(true, Ordering::Relaxed);
                if pieces.send(piece).await.is_err() {
                    return Err(Attempt::refused("the caller went away"));
                }
            }
            read?;
        }
        let completion = partial.end()?;
        charge.settle(Usage::of(&completion));
        Ok(completion)
    }
}

/// A reply of status 200 is charged for by the provider, even one that broke off.
fn charged(status: u16, failed: Attempt, call: &Call, order: &Order) -> Attempt {
    if status == 200 {
        order.meter.add(Usage { calls: 1, prompt: estimate(call), answer: 0 });
    }
    failed
}

/// What a stream is read from.
enum Source<'a> {
    Plain(Flow<'a>),
    Tls(reqwest::Response),
}

impl Source<'_> {
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Attempt> {
        match self {
            Self::Plain(flow) => flow.next().await,
            Self::Tls(response) => Ok(response.chunk().await.map_err(|e| transport(&e))?.map(|chunk| chunk.to_vec())),
        }
    }

    /// All that comes, up to the limit of a reply.
    async fn rest(&mut self) -> Result<Vec<u8>, Attempt> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await?
            && all.len() <= REPLY_LIMIT
        {
            all.extend(bytes);
        }
        Ok(all)
    }
}

/// Charges the prompt of a stream that ends early; dropped when the caller goes away too.
struct Charge<'a> {
    order: &'a Order,
    prompt: u64,
    done: bool,
}

impl Charge<'_> {
    fn settle(mut self, used: Usage) {
        self.done = true;
        self.order.meter.add(used);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.order.meter.add(Usage { calls: 1, prompt: self.prompt, answer: 0 });
        }
    }
}

fn is_json(content_type: &str) -> bool {
    let media = media(content_type).as_bytes();
    let suffix = media.len().checked_sub(5).and_then(|at| media.get(at..));
    media.eq_ignore_ascii_case(b"application/json") || suffix.is_some_and(|end| end.eq_ignore_ascii_case(b"+json"))
}
