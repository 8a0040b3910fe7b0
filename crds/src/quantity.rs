//! Kubernetes quantities (`500m`, `2Gi`, `4`), as a number or a string.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::borrow::Cow;

/// What a quantity looks like; the pattern of the API server's own quantities, without signs.
pub const PATTERN: &str = r"^([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$";

/// A Kubernetes quantity, kept as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(serde_json::Number),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        if parse(&text).is_none() {
            return Err(de::Error::custom(format!("`{text}` is not a quantity; write for example 500m, 4 or 16Gi")));
        }
        Ok(Self(text))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
        })
    }
}

impl Quantity {
    /// The value in base units (bytes, cores); none when it is not a quantity.
    pub fn value(&self) -> Option<f64> {
        parse(&self.0)
    }
}

fn parse(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: f64 = number.parse().ok().filter(|_| number.chars().any(|c| c.is_ascii_digit()))?;
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(number * scale)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn quantities_read_like_kubernetes_does() {
        let value = |json: &str| serde_json::from_str::<Quantity>(json).map(|q| q.value().unwrap());
        for (json, expected) in [
            ("\"500m\"", 0.5),
            ("4", 4.0),
            ("1.5", 1.5),
            ("\"2Gi\"", 2_147_483_648.0),
            ("\"1e3\"", 1000.0),
            ("\".5\"", 0.5),
        ] {
            let found = value(json).unwrap();
            assert!((found - expected).abs() < 1e-9, "{json} → {found}");
        }
        for bad in ["\"\"", "\"-1\"", "\"2 Gi\"", "\"GiB\"", "\".\"", "\"2gi\"", "true", "-4"] {
            assert!(value(bad).is_err(), "{bad} was accepted");
        }
        assert!(value("\"2gi\"").unwrap_err().to_string().contains("16Gi"));
    }
}
