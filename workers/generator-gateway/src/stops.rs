//! Stop strings that are applied here: by the built-in model, and for providers that refuse some of them.

/// The text before the first stop string. White space before the first word stops nothing: a model that opens
/// with a line break has not answered yet.
pub(crate) fn cut(text: &str, stops: &[impl AsRef<str>]) -> Option<String> {
    let lead = text.len() - text.trim_start().len();
    let at = stops.iter().filter_map(|stop| text[lead..].find(stop.as_ref())).min()?;
    Some(text[..lead + at].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_cut_after_the_first_word() {
        let newline = ["\n"];
        assert_eq!(cut("Paris\nFrance", &newline).as_deref(), Some("Paris"));
        assert_eq!(cut("\n\n Paris", &newline), None);
        assert_eq!(cut("\n Paris \n", &newline).as_deref(), Some("\n Paris "));
        assert_eq!(cut("a END b", &["b", "END"]).as_deref(), Some("a "));
        assert_eq!(cut("a", &[""; 0]), None);
    }
}
