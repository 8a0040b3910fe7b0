//! A text's words as Lucene's `StandardTokenizer` cuts them: Unicode's word boundaries (UAX 29), with two
//! rules of its own. A run of South-East Asian letters, which are written without spaces, is one word; and
//! a pictograph is a word.

use unicode_segmentation::UnicodeSegmentation;

/// The words of a text, in order.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut pieces = text.split_word_bound_indices().peekable();
    std::iter::from_fn(move || {
        loop {
            let (start, piece) = pieces.next()?;
            let first = piece.chars().next()?;
            if is_south_east_asian(first) {
                let mut end = start + piece.len();
                while let Some((_, next)) = pieces.next_if(|(_, piece)| piece.starts_with(is_south_east_asian)) {
                    end += next.len();
                }
                return Some(&text[start..end]);
            }
            if is_word(piece, first) {
                return Some(piece);
            }
        }
    })
}

fn is_word(piece: &str, first: char) -> bool {
    if first.is_ascii_alphanumeric() {
        return true;
    }
    // a leading underscore joins letters; anything else of ASCII stands alone
    if first.is_ascii() {
        return piece.len() > 1 && piece.chars().any(char::is_alphanumeric);
    }
    if piece.chars().any(|letter| letter.is_alphanumeric() && !is_other_number(letter)) {
        return true;
    }
    is_within(first, PICTOGRAPHS)
}

fn is_within(letter: char, ranges: &[(u32, u32)]) -> bool {
    let code = letter as u32;
    let at = ranges.partition_point(|(_, last)| *last < code);
    ranges.get(at).is_some_and(|(first, _)| *first <= code)
}

fn is_south_east_asian(letter: char) -> bool {
    // their digits are digits like others
    letter as u32 >= 0x0E00 && is_within(letter, SOUTH_EAST_ASIAN) && !letter.is_numeric()
}

/// Numbers that are no digits and so part of no word: superscripts, fractions, circled numbers.
fn is_other_number(letter: char) -> bool {
    !letter.is_alphabetic() && letter.is_numeric() && is_within(letter, OTHER_NUMBERS)
}

/// Scripts of line-breaking class SA.
const SOUTH_EAST_ASIAN: &[(u32, u32)] = &[
    (0x0E01, 0x0E3A),
    (0x0E40, 0x0E4E),
    (0x0E80, 0x0ECF),
    (0x0EDC, 0x0EDF),
    (0x1000, 0x103F),
    (0x1050, 0x108F),
    (0x109A, 0x109F),
    (0x1780, 0x17D3),
    (0x17D7, 0x17D7),
    (0x17DC, 0x17DD),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAD),
    (0xA9E0, 0xA9FE),
    (0xAA60, 0xAADF),
];

/// General category No in the Basic Multilingual Plane.
const OTHER_NUMBERS: &[(u32, u32)] = &[
    (0x00B2, 0x00B3),
    (0x00B9, 0x00B9),
    (0x00BC, 0x00BE),
    (0x09F4, 0x09F9),
    (0x0B72, 0x0B77),
    (0x0BF0, 0x0BF2),
    (0x0C78, 0x0C7E),
    (0x0D58, 0x0D5E),
    (0x0D70, 0x0D78),
    (0x0F2A, 0x0F33),
    (0x1369, 0x137C),
    (0x17F0, 0x17F9),
    (0x19DA, 0x19DA),
    (0x2070, 0x2189),
    (0x2460, 0x24FF),
    (0x2776, 0x2793),
    (0x2CFD, 0x2CFD),
    (0x3192, 0x32BF),
    (0xA830, 0xA835),
];

/// Extended pictographs.
const PICTOGRAPHS: &[(u32, u32)] = &[
    (0x00A9, 0x00A9),
    (0x00AE, 0x00AE),
    (0x203C, 0x203C),
    (0x2049, 0x2049),
    (0x2122, 0x2122),
    (0x2139, 0x2139),
    (0x2194, 0x2199),
    (0x21A9, 0x21AA),
    (0x231A, 0x231B),
    (0x2328, 0x2328),
    (0x2388, 0x2388),
    (0x23CF, 0x23CF),
    (0x23E9, 0x23F3),
    (0x23F8, 0x23FA),
    (0x24C2, 0x24C2),
    (0x25AA, 0x25AB),
    (0x25B6, 0x25B6),
    (0x25C0, 0x25C0),
    (0x25FB, 0x25FE),
    (0x2600, 0x2605),
    (0x2607, 0x2612),
    (0x2614, 0x2685),
    (0x2690, 0x2705),
    (0x2708, 0x2712),
    (0x2714, 0x2714),
    (0x2716, 0x2716),
    (0x271D, 0x271D),
    (0x2721, 0x2721),
    (0x2728, 0x2728),
    (0x2733, 0x2734),
    (0x2744, 0x2744),
    (0x2747, 0x2747),
    (0x274C, 0x274C),
    (0x274E, 0x274E),
    (0x2753, 0x2755),
    (0x2757, 0x2757),
    (0x2763, 0x2767),
    (0x2795, 0x2797),
    (0x27A1, 0x27A1),
    (0x27B0, 0x27B0),
    (0x27BF, 0x27BF),
    (0x2934, 0x2935),
    (0x2B05, 0x2B07),
    (0x2B1B, 0x2B1C),
    (0x2B50, 0x2B50),
    (0x2B55, 0x2B55),
    (0x3030, 0x3030),
    (0x303D, 0x303D),
    (0x3297, 0x3297),
    (0x3299, 0x3299),
    (0x1F000, 0x1F0FF),
    (0x1F10D, 0x1F10F),
    (0x1F12F, 0x1F12F),
    (0x1F16C, 0x1F171),
    (0x1F17E, 0x1F17F),
    (0x1F18E, 0x1F18E),
    (0x1F191, 0x1F19A),
    (0x1F1AD, 0x1F20F),
    (0x1F21A, 0x1F21A),
    (0x1F22F, 0x1F22F),
    (0x1F232, 0x1F23A),
    (0x1F23C, 0x1F23F),
    (0x1F249, 0x1F64F),
    (0x1F680, 0x1F6FF),
    (0x1F774, 0x1F77F),
    (0x1F7D5, 0x1F7FF),
    (0x1F80C, 0x1F80F),
    (0x1F848, 0x1F84F),
    (0x1F85A, 0x1F85F),
    (0x1F888, 0x1F88F),
    (0x1F8AE, 0x1FAFF),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Each as Anserini 1.7.1 counts it.
    #[test]
    fn words_are_lucenes() {
        let of = |text: &'static str| words(text).collect::<Vec<_>>().join("|");
        assert_eq!(of("New-York, (M☉). 8½ m² ½ ② → ☆ ★ ™"), "New|York|M|☉|8|m|★|™");
        assert_eq!(of("zebra ဒဂုၚ် ภาษาไทย ဒ"), "zebra|ဒဂုၚ်|ภาษาไทย|ဒ");
        assert_eq!(of("3,4 a_b _e p\u{2019}s 日本 カタカナ Ⅷ"), "3,4|a_b|_e|p\u{2019}s|日|本|カタカナ|Ⅷ");
    }

    #[test]
    fn tables_are_in_order() {
        for table in [SOUTH_EAST_ASIAN, OTHER_NUMBERS, PICTOGRAPHS] {
            assert!(table.is_sorted_by(|a, b| a.1 < b.0) && table.iter().all(|(a, b)| a <= b));
        }
    }
}
