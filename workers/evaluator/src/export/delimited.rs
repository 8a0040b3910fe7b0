//! Comma-separated values as RFC 4180 has them.

use super::frame::{Frame, plain};

/// The table with a header line. What is missing is an empty field, an empty text is `""`.
pub fn csv(frame: &Frame) -> String {
    let mut text = line(frame.columns.iter().map(|column| Some(column.name.clone())));
    for row in &frame.rows {
        text.push_str(&line(row.iter().map(plain)));
    }
    text
}

fn line(fields: impl Iterator<Item = Option<String>>) -> String {
    let fields: Vec<String> = fields.map(|field| field.map_or_else(String::new, |field| quoted(&field))).collect();
    fields.join(",") + "\r\n"
}

fn quoted(field: &str) -> String {
    if !field.is_empty() && !field.contains([',', '"', '\n', '\r']) && field.trim() == field {
        return field.to_owned();
    }
    format!("\"{}\"", field.replace('"', "\"\""))
}
