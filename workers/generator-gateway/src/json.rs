//! Texts as JSON strings, eight bytes at a time: prompts are long, and little in them needs an escape.

/// Every byte is 1.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The highest bit of every byte.
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Whether one of eight bytes may need an escape: a quote, a backslash or a control character. It never says
/// no when one does.
fn may_need_escape(word: u64) -> bool {
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let below_blank = word.wrapping_sub(ONES * 0x20) & !word;
    (zero(word ^ (ONES * u64::from(b'"'))) | zero(word ^ (ONES * u64::from(b'\\'))) | below_blank) & HIGHS != 0
}

fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Appends bytes as lower-case hex.
pub(crate) fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

fn push_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            out.extend_from_slice(b"\\u00");
            push_hex(out, &[byte]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends a text as a JSON string.
pub(crate) fn push_quoted(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let (mut done, mut at) = (0, 0);
    while at < bytes.len() {
        let end = (at + 8).min(bytes.len());
        if let Ok(eight) = <[u8; 8]>::try_from(&bytes[at..end])
            && !may_need_escape(u64::from_le_bytes(eight))
        {
            at = end;
            continue;
        }
        for place in at..end {
            if needs_escape(bytes[place]) {
                out.extend_from_slice(&bytes[done..place]);
                push_escape(out, bytes[place]);
                done = place + 1;
            }
        }
        at = end;
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

/// Appends a number in decimal.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn texts_are_quoted_as_serde_quotes_them(
            text in prop_oneof![
                "[ -~]{0,40}",
                "(\\PC|[\u{0}-\u{1f}\"\\\\\u{7f}-\u{a0}\u{2028}]){0,60}",
                proptest::collection::vec(any::<char>(), 0..60).prop_map(|chars| chars.into_iter().collect::<String>()),
            ],
            number in any::<u64>(),
        ) {
            let mut out = Vec::new();
            push_quoted(&mut out, &text);
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
            let mut out = Vec::new();
            push_number(&mut out, number >> (number % 64));
            prop_assert_eq!(String::from_utf8(out).unwrap(), (number >> (number % 64)).to_string());
        }
    }

    #[test]
    fn every_byte_at_every_place_of_a_word() {
        for place in 0..24 {
            for byte in 0..0x80u8 {
                let mut text = vec![b'a'; 24];
                text[place] = byte;
                let text = String::from_utf8(text).unwrap();
                let mut out = Vec::new();
                push_quoted(&mut out, &text);
                assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
            }
        }
    }
}
