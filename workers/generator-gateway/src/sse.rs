//! Server-sent events: the data of each, however the bytes are cut.

/// Longest event that is kept together.
const LIMIT: usize = 4 << 20;

/// Takes bytes, gives the data of whole events.
#[derive(Default)]
pub(crate) struct Events {
    bytes: Vec<u8>,
    data: String,
    has_data: bool,
}

impl Events {
    /// Adds bytes and calls `each` with the data of every event that is now whole.
    pub fn push<E>(&mut self, bytes: &[u8], mut each: impl FnMut(&str) -> Result<(), E>) -> Result<Result<(), E>, ()> {
        self.bytes.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(length) = self.bytes[from..].iter().position(|byte| *byte == b'\n') {
            let line = &self.bytes[from..from + length];
            from += length + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                if std::mem::take(&mut self.has_data) {
                    let data = std::mem::take(&mut self.data);
                    if let Err(error) = each(&data) {
                        return Ok(Err(error));
                    }
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                let text = String::from_utf8_lossy(data.strip_prefix(b" ").unwrap_or(data));
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(&text);
            }
        }
        self.bytes.drain(..from);
        if self.bytes.len() + self.data.len() > LIMIT { Err(()) } else { Ok(Ok(())) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text =
            "event: a\ndata: {\"x\":1}\r\n\r\n: comment\n\ndata:one\ndata: two é\n\nid: 3\ndata: [DONE]\n\ndata: cut";
        for step in 1..text.len() {
            let mut events = Events::default();
            let mut seen = Vec::new();
            for part in text.as_bytes().chunks(step) {
                events
                    .push(part, |data| {
                        seen.push(data.to_owned());
                        Ok::<(), ()>(())
                    })
                    .unwrap()
                    .unwrap();
            }
            assert_eq!(seen, ["{\"x\":1}", "one\ntwo é", "[DONE]"], "step {step}");
        }
    }
}
