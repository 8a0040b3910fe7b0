//! Texts as JSON strings, a block of bytes at a time: prompts are long, and little in them needs an escape.

/// Bytes looked at together; compilers turn the look into a few vector instructions.
const BLOCK: usize = 32;

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
    let (mut done, mut start) = (0, 0);
    for block in bytes.chunks(BLOCK) {
        // without a way out of the loop, which would have to look at one byte after the other
        if block.iter().fold(false, |any, byte| any | needs_escape(*byte)) {
            for (place, byte) in (start..).zip(block) {
                if needs_escape(*byte) {
                    out.extend_from_slice(&bytes[done..place]);
                    push_escape(out, *byte);
                    done = place + 1;
                }
            }
        }
        start += block.len();
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

/// Appends a member's name as it is, and a finite number, with a point even where nothing follows it.
pub(crate) fn push_float(out: &mut Vec<u8>, name: &str, number: f64) {
    out.extend_from_slice(name.as_bytes());
    // writing into memory does not fail
    let _ = serde_json::to_writer(out, &number);
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
    fn every_byte_at_every_place_of_a_block() {
        for place in 0..2 * BLOCK + 8 {
            for byte in 0..0x80u8 {
                let mut text = vec![b'a'; 2 * BLOCK + 8];
                text[place] = byte;
                let text = String::from_utf8(text).unwrap();
                let mut out = Vec::new();
                push_quoted(&mut out, &text);
                assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string(&text).unwrap());
            }
        }
    }
}
