//! JSON, Markdown and LaTeX.

use super::frame::{Cell, Frame, Kind, shown};
use crate::error::EvalError;
use s3_artifacts::ArtifactError;
use serde_json::{Map, Value};

/// A list of objects, one line each.
pub fn json(frame: &Frame) -> Result<Vec<u8>, EvalError> {
    let mut text = String::from("[");
    for (number, row) in frame.rows.iter().enumerate() {
        let object: Map<String, Value> =
            frame.columns.iter().zip(row).map(|(column, cell)| (column.name.clone(), value(cell))).collect();
        text.push_str(if number == 0 { "\n" } else { ",\n" });
        text.push_str(&serde_json::to_string(&object).map_err(ArtifactError::from)?);
    }
    text.push_str("\n]\n");
    Ok(text.into_bytes())
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Text(text) => text.as_str().into(),
        Cell::Whole(number) => (*number).into(),
        Cell::Real(number) => (*number).into(),
        Cell::Truth(yes) => (*yes).into(),
    }
}

/// A pipe table; numbers stand right.
pub fn markdown(frame: &Frame) -> String {
    let names: Vec<String> = frame.columns.iter().map(|column| piped(&column.name)).collect();
    let rules: Vec<&str> =
        frame.columns.iter().map(|column| if column.kind == Kind::Text { "---" } else { "---:" }).collect();
    let mut text = format!("| {} |\n|{}|\n", names.join(" | "), rules.join("|"));
    for row in &frame.rows {
        let cells: Vec<String> = row.iter().map(|cell| piped(&shown(cell))).collect();
        text.push_str("| ");
        text.push_str(&cells.join(" | "));
        text.push_str(" |\n");
    }
    text
}

fn piped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// A `tabular` for `\usepackage{booktabs}`.
pub fn latex(frame: &Frame) -> String {
    let places: String = frame.columns.iter().map(|column| if column.kind == Kind::Text { 'l' } else { 'r' }).collect();
    let names: Vec<String> = frame.columns.iter().map(|column| escaped(&column.name)).collect();
    let mut text = format!("\\begin{{tabular}}{{{places}}}\n\\toprule\n{} \\\\\n\\midrule\n", names.join(" & "));
    for row in &frame.rows {
        let cells: Vec<String> = row.iter().map(|cell| escaped(&shown(cell))).collect();
        text.push_str(&cells.join(" & "));
        text.push_str(" \\\\\n");
    }
    text.push_str("\\bottomrule\n\\end{tabular}\n");
    text
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '−' => out.push_str("$-$"),
            '–' => out.push_str("--"),
            '×' => out.push_str("$\\times$"),
            '†' => out.push_str("$^\\dagger$"),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
