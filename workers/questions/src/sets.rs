//! The public sets: what files call them, and where they are published.

/// A public set.
#[derive(Debug, PartialEq, Eq)]
pub struct Set {
    /// As resources name it.
    pub name: &'static str,
    /// As files name it (`data_source`, keys of MIRAGE's benchmark, file names).
    pub source: &'static str,
    /// The split that papers report.
    pub split: &'static str,
    /// Whether the `FlashRAG` collection has it; MIRAGE's sets lie in MIRAGE's `benchmark.json`.
    pub flash_rag: bool,
}

const fn flash(name: &'static str, source: &'static str, split: &'static str) -> Set {
    Set { name, source, split, flash_rag: true }
}
const fn mirage(name: &'static str, source: &'static str) -> Set {
    Set { name, source, split: "test", flash_rag: false }
}

/// All of them.
pub const SETS: [Set; 12] = [
    flash("Nq", "nq", "test"),
    flash("TriviaQa", "triviaqa", "test"),
    flash("PopQa", "popqa", "test"),
    flash("HotpotQa", "hotpotqa", "dev"),
    flash("TwoWiki", "2wikimultihopqa", "dev"),
    flash("MuSiQue", "musique", "dev"),
    flash("Bamboogle", "bamboogle", "test"),
    mirage("MedQa", "medqa"),
    mirage("MedMcqa", "medmcqa"),
    mirage("PubMedQa", "pubmedqa"),
    mirage("BioAsq", "bioasq"),
    mirage("Mmlu", "mmlu"),
];

/// A set by its name in resources.
pub fn named(name: &str) -> Option<&'static Set> {
    SETS.iter().find(|set| set.name == name)
}

/// A set by the name that a file or a person gives it: `nq`, `nq-test`, `NQ`.
pub fn guessed(name: &str) -> Option<&'static Set> {
    let bare = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    let name = bare(name);
    let ends = ["", "test", "dev", "train"];
    SETS.iter().find(|set| {
        [bare(set.source), bare(set.name)].iter().any(|own| ends.iter().any(|end| name == format!("{own}{end}")))
    })
}
