//! Between the wire's messages and the search loop's types.

use s3_config::RetrievalMethod;
use s3_proto::v1;
use s3_search::score::Verdict;
use s3_search::{Message, Passage, Speaker};

pub(crate) fn passage(wire: v1::Passage) -> Passage {
    Passage { id: wire.id, title: wire.title, text: wire.text }
}

pub(crate) fn wire_passage(passage: &Passage) -> v1::Passage {
    v1::Passage { id: passage.id.clone(), title: passage.title.clone(), text: passage.text.clone() }
}

pub(crate) fn wire_message(message: &Message) -> v1::ChatMessage {
    let speaker = match message.speaker {
        Speaker::System => v1::Speaker::System,
        Speaker::User => v1::Speaker::User,
        Speaker::Assistant => v1::Speaker::Assistant,
    };
    v1::ChatMessage { speaker: speaker.into(), text: message.text.clone() }
}

pub(crate) fn method(method: RetrievalMethod) -> v1::Method {
    match method {
        RetrievalMethod::Default => v1::Method::Default,
        RetrievalMethod::Lexical => v1::Method::Lexical,
        RetrievalMethod::Dense => v1::Method::Dense,
        RetrievalMethod::Hybrid => v1::Method::Hybrid,
    }
}

pub(crate) fn verdict(wire: v1::Verdict) -> Verdict {
    match wire {
        v1::Verdict::Correct => Verdict::Correct,
        v1::Verdict::Incorrect => Verdict::Incorrect,
        v1::Verdict::Undecided => Verdict::Undecided,
        v1::Verdict::Failed | v1::Verdict::Unspecified => Verdict::Failed,
    }
}
