//! What is read before a turn: words, and passages cut to the budgets.

use crate::episode::SearchError;
use crate::prompt;
use crate::types::{Codec, Passage};

/// What stands around passages, and how each is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Before the first.
    pub open: &'static str,
    /// After the last.
    pub close: &'static str,
    /// Between number and title: `Doc 1 (Title: …)`, or without the blank.
    pub gap: &'static str,
}

impl Frame {
    /// The information block of s3.
    pub const INFORMATION: Self = Self { open: "<information>\n", close: "</information>", gap: " " };
    /// The lines alone.
    pub const LINES: Self = Self { open: "", close: "", gap: " " };
}

/// How passages that are too long are brought to the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// Whole passages are dropped from the end; the block is always closed.
    #[default]
    Passages,
    /// The text is cut wherever the budget ends, closing tag and all: what some references do.
    Cut,
}

/// Words around passages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Standing instructions, in the first page of a conversation.
    pub system: Option<String>,
    /// Before the passages.
    pub before: String,
    /// The passages and their frame.
    pub passages: Option<(Frame, Vec<Passage>)>,
    /// After the passages.
    pub after: String,
    /// How they are brought to the budget.
    pub fit: Fit,
}

/// A page that fits.
pub(super) struct Fitted {
    /// Its text.
    pub text: String,
    /// How many of the passages are in it: the first so many.
    pub shown: usize,
    /// Its tokens, where they are no others than the text's (a page that is cut).
    pub cut: Option<Vec<u32>>,
}

/// Budgets in tokens of the codec.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budgets {
    pub passage: usize,
    pub block: usize,
    /// Left in the conversation beside the turn.
    pub room: usize,
}

impl Page {
    fn text(&self, block: &str) -> String {
        [self.before.as_str(), block, self.after.as_str()].concat()
    }

    /// The page within the budgets; none when even its words do not fit. `measure` counts the tokens of the page's
    /// text where it is to stand.
    pub(super) fn fitted(
        &self,
        budgets: Budgets,
        codec: &dyn Codec,
        measure: &dyn Fn(&str) -> Result<usize, SearchError>,
    ) -> Result<Option<Fitted>, SearchError> {
        if self.fit == Fit::Cut {
            let block = self.passages.as_ref().map(|(frame, passages)| prompt::whole(passages, frame));
            let mut tokens = codec.encode(&self.text(&block.unwrap_or_default()));
            tokens.truncate(budgets.block.min(budgets.room));
            let text = codec.decode(&tokens);
            let shown = self.passages.as_ref().map_or(0, |(_, passages)| passages.len());
            return Ok(Some(Fitted { text, shown, cut: Some(tokens) }));
        }
        let Some((frame, passages)) = &self.passages else {
            let text = self.text("");
            let fits = measure(&text)? <= budgets.room;
            return Ok(fits.then_some(Fitted { text, shown: 0, cut: None }));
        };
        let skeleton = measure(&self.text(""))?;
        let Some(room) = budgets.room.checked_sub(skeleton) else { return Ok(None) };
        let budget = room.min(budgets.block);
        let block = prompt::block_in(frame, passages, budgets.passage, codec, |block| {
            Ok(measure(&self.text(block))?.saturating_sub(skeleton).saturating_sub(budget))
        })?;
        Ok(block.map(|block| Fitted { text: self.text(&block.text), shown: block.shown, cut: None }))
    }
}
