//! Question, golds, options and evidence of one row.

use crate::Asked;
use crate::sets::Set;
use s3_config::QuestionFields;
use s3_search::Question;
use serde_json::Value;

/// Where ids stand, the first that is there.
const IDS: [&str; 6] = ["id", "_id", "question_id", "QuestionId", "qid", "extra_info.index"];
/// Where questions stand.
const QUESTIONS: [&str; 5] =
    ["question", "Question", "query", "extra_info.question", "reward_model.ground_truth.question"];
/// Where gold answers stand; lists before single answers.
const ANSWERS: [&str; 10] = [
    "answers",
    "golden_answers",
    "reward_model.ground_truth.target",
    "possible_answers",
    "answer",
    "Answer",
    "gold_ans",
    "gold_answer",
    "target",
    "answer_list",
];
/// More right answers beside a single one.
const ALIASES: [&str; 2] = ["answer_aliases", "answer_alias"];
/// Where the set's name stands in files of several.
const SOURCES: [&str; 2] = ["data_source", "source_dataset"];
/// Where the split's name stands.
const SPLITS: [&str; 2] = ["extra_info.split", "split"];

/// Whether a row is of this set and split. A row that does not say belongs to every one.
pub fn belongs(row: &Value, set: Option<&Set>, split: Option<&str>) -> bool {
    let says = |places: &[&str]| places.iter().find_map(|place| at(row, place)?.as_str());
    set.is_none_or(|set| says(&SOURCES).is_none_or(|source| source.eq_ignore_ascii_case(set.source)))
        && split.is_none_or(|split| says(&SPLITS).is_none_or(|own| own == split))
}

/// What a row asks; without an id of its own an empty one.
pub fn question(row: &Value, fields: &QuestionFields) -> Result<Asked, String> {
    let id = match &fields.id {
        Some(place) => Some(at(row, place).ok_or_else(|| format!("no `{place}`, which fields.id names"))?),
        None => IDS.iter().find_map(|place| at(row, place)),
    };
    let id = match id {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        None | Some(Value::Null) => String::new(),
        Some(other) => return Err(format!("id {other} is neither a text nor a number")),
    };
    let mut text = text(row, fields)?;
    let mut answers = match &fields.answers {
        Some(place) => {
            let found = at(row, place).ok_or_else(|| format!("no `{place}`, which fields.answers names"))?;
            golds(found, place)?
        }
        None => usual_answers(row)?,
    };
    let options = fields.options.as_deref().unwrap_or("options");
    if let Some(Value::Object(options)) = at(row, options).filter(|options| options.is_object()) {
        (text, answers) = with_options(&text, options, &answers)?;
    }
    let question = Question { id, dataset: String::new(), question: text, answers };
    Ok(Asked { question, evidence: evidence(row, fields)? })
}

/// The question's text, without its options.
pub fn text(row: &Value, fields: &QuestionFields) -> Result<String, String> {
    let text =
        match &fields.question {
            Some(place) => at(row, place)
                .and_then(Value::as_str)
                .ok_or_else(|| format!("no text `{place}`, which fields.question names"))?,
            None => QUESTIONS.iter().find_map(|place| at(row, place)?.as_str()).or_else(|| prompted(row)).ok_or_else(
                || format!("no question; there are {}, name its column with fields.question", columns(row)),
            )?,
        };
    let text = text.trim();
    if text.is_empty() { Err("the question is empty".into()) } else { Ok(text.to_owned()) }
}

/// A member by its dotted path.
fn at<'a>(row: &'a Value, path: &str) -> Option<&'a Value> {
    let found = row.get(path).or_else(|| path.split('.').try_fold(row, |inside, name| inside.get(name)));
    found.filter(|value| !value.is_null())
}

fn columns(row: &Value) -> String {
    let names: Vec<&str> = row.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    names.join(", ")
}

/// Search-R1's and s3's prompts end with the question.
fn prompted(row: &Value) -> Option<&str> {
    let text = at(row, "prompt")?.get(0)?.get("content")?.as_str()?;
    if let Some((_, rest)) = text.rsplit_once("<question>") {
        return Some(rest.split("</question>").next().unwrap_or(rest));
    }
    text.rsplit_once("Question:").map(|(_, question)| question)
}

fn usual_answers(row: &Value) -> Result<Vec<String>, String> {
    let found = ANSWERS.iter().find_map(|place| at(row, place).map(|value| (*place, value)));
    let Some((place, value)) = found else {
        return Err(format!("no gold answers; there are {}, name their column with fields.answers", columns(row)));
    };
    let mut answers = golds(value, place)?;
    for alias in ALIASES {
        if let Some(more) = at(row, alias) {
            answers.extend(golds(more, alias)?);
        }
    }
    answers.dedup();
    Ok(answers)
}

/// Gold answers in the forms that files have: a list, one text, TriviaQA's `{value, aliases}`, `SQuAD`'s `{text}`,
/// `PopQA`'s list inside a text, a number, yes or no.
fn golds(value: &Value, place: &str) -> Result<Vec<String>, String> {
    match value {
        Value::Array(items) => {
            let lists = items.iter().map(|item| golds(item, place)).collect::<Result<Vec<_>, _>>()?;
            Ok(lists.into_iter().flatten().collect())
        }
        Value::String(text) if place == "possible_answers" && text.starts_with('[') => {
            let list: Value = serde_json::from_str(text).map_err(|error| format!("`{place}` is no list: {error}"))?;
            golds(&list, place)
        }
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Number(number) => Ok(vec![number.to_string()]),
        Value::Bool(yes) => Ok(vec![if *yes { "yes" } else { "no" }.to_owned()]),
        Value::Object(map) => {
            let names = ["value", "Value", "text", "aliases", "Aliases", "target"];
            let parts = names.iter().filter_map(|name| map.get(*name));
            let lists = parts.map(|part| golds(part, place)).collect::<Result<Vec<_>, _>>()?;
            let mut answers: Vec<String> = Vec::new();
            for answer in lists.into_iter().flatten() {
                if !answers.contains(&answer) {
                    answers.push(answer);
                }
            }
            if answers.is_empty() { Err(format!("`{place}` holds no answers: {value}")) } else { Ok(answers) }
        }
        Value::Null => Err(format!("`{place}` holds no answers")),
    }
}

/// A multiple-choice question as the reference asks it: the options stand under the question, and the right one is
/// `K: text`. Its text alone is right, too; the reference's exact match knows only the first.
fn with_options(
    question: &str,
    options: &serde_json::Map<String, Value>,
    answers: &[String],
) -> Result<(String, Vec<String>), String> {
    let mut lines = vec![question.to_owned(), "Options:".to_owned()];
    let mut golds = Vec::new();
    for (key, option) in options {
        let Some(text) = option.as_str() else { return Err(format!("option {key} is no text: {option}")) };
        lines.push(format!("{key}: {text}"));
        if answers.iter().any(|answer| answer.trim() == key || answer.trim() == text) {
            golds.extend([format!("{key}: {text}"), text.to_owned()]);
        }
    }
    if golds.is_empty() {
        return Err(format!("none of the options is the answer {answers:?}"));
    }
    Ok((lines.join("\n"), golds))
}

/// Titles that the set marks: HotpotQA's and 2Wiki's supporting facts, `MuSiQue`'s supporting paragraphs.
fn evidence(row: &Value, fields: &QuestionFields) -> Result<Vec<String>, String> {
    let mut titles: Vec<String> = Vec::new();
    let mut add = |title: &Value| {
        if let Some(title) = title.as_str().filter(|title| !titles.iter().any(|known| known == title)) {
            titles.push(title.to_owned());
        }
    };
    if let Some(place) = &fields.evidence {
        let found = at(row, place).ok_or_else(|| format!("no `{place}`, which fields.evidence names"))?;
        found.as_array().map_or(std::slice::from_ref(found), Vec::as_slice).iter().for_each(&mut add);
        return Ok(titles);
    }
    if let Some(own) = row.get("evidence").and_then(Value::as_array) {
        own.iter().for_each(&mut add);
    }
    for place in ["supporting_facts", "metadata.supporting_facts"] {
        let Some(facts) = at(row, place) else { continue };
        if let Some(list) = facts.get("title").and_then(Value::as_array) {
            list.iter().for_each(&mut add);
        }
        for fact in facts.as_array().into_iter().flatten() {
            add(fact.get(0).or_else(|| fact.get("title")).unwrap_or(&Value::Null));
        }
    }
    for place in ["paragraphs", "metadata.paragraphs"] {
        for paragraph in at(row, place).and_then(Value::as_array).into_iter().flatten() {
            if paragraph["is_supporting"] == true {
                add(&paragraph["title"]);
            }
        }
    }
    Ok(titles)
}
