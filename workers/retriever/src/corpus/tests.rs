#![allow(clippy::unwrap_used)]
use super::*;
use std::io::Write as _;

fn take(path: &Path, limit: Option<u64>) -> Result<Vec<Entry>> {
    let corpus = CorpusConfig { path: path.to_owned(), sha256: None, limit };
    let digest = corpus_digest(&corpus)?;
    let mut entries = Vec::new();
    let count = read_corpus(&corpus, &digest, |entry| {
        entries.push(entry);
        Ok(())
    })?;
    assert_eq!(count, entries.len() as u64);
    Ok(entries)
}

fn read(text: &str, limit: Option<u64>) -> Result<Vec<Entry>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.jsonl");
    std::fs::write(&path, text).unwrap();
    take(&path, limit)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// Rows as the hub converts them.
fn write_parquet(path: &Path, rows: &[(&str, &str, &str, i64)], codec: parquet::basic::Compression) {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    use std::sync::Arc;
    let schema = "message m { required binary id (UTF8); optional binary title (UTF8); required binary text (UTF8); \
                  required int64 year; }";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_compression(codec).build());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let strings = |at: usize| -> Vec<ByteArray> {
        rows.iter().map(|row| [row.0, row.1, row.2][at].as_bytes().to_vec().into()).collect()
    };
    for at in 0..3 {
        let mut column = group.next_column().unwrap().unwrap();
        let levels = (at == 1).then(|| vec![1i16; rows.len()]);
        column.typed::<ByteArrayType>().write_batch(&strings(at), levels.as_deref(), None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    let years: Vec<i64> = rows.iter().map(|row| row.3).collect();
    column.typed::<Int64Type>().write_batch(&years, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn both_forms_read_the_same() {
    let ours = r#"{"id":"7","title":"A (film)","text":"Line one\nline \"two\""}"#;
    let reference = r#"{"id":"7","contents":"\"A (film)\"\nLine one\nline \"two\""}"#;
    let read_ours = read(ours, None).unwrap();
    assert_eq!(read_ours, read(&format!("\n{reference}\n"), None).unwrap());
    let passage = read_ours[0].clone().passage();
    assert_eq!(contents(&passage.title, &passage.text), "\"A (film)\"\nLine one\nline \"two\"");
}

#[test]
fn bad_lines_are_named() {
    let good = |id: &str| format!("{{\"id\":\"{id}\",\"title\":\"\",\"text\":\"t\"}}\n");
    for (bad, says) in [
        ("{\"id\":\"x\"}", "neither text nor contents"),
        ("{\"id\":[3],\"text\":\"t\"}", "invalid type"),
        ("{\"id\":\"x\",\"text\":7}", "invalid type"),
        ("not json", "expected"),
        (good("a").trim(), "unique"),
        ("{\"id\":\"\",\"text\":\"t\"}", "empty"),
    ] {
        let error = read(&(good("a") + &good("b") + bad + "\n" + &good("c")), None).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains(says), "{error}");
        assert!(!error.contains('\n'));
        // what stands behind the limit is not looked at
        assert_eq!(read(&(good("a") + &good("b") + bad), Some(2)).unwrap().len(), 2);
    }
    assert!(read("\n\n", None).unwrap_err().to_string().contains("no passages"));
}

/// The layouts that the reference's corpora, MIRAGE's, BEIR's and DPR's are published in.
#[test]
fn published_layouts_are_read_as_they_are() {
    let one = |text: &str| read(text, None).unwrap().remove(0);
    // wiki-18 and MedCorp of the reference
    let wiki = one(r#"{"id": "0", "contents": "\"Aaron\"\nAaron is a prophet."}"#);
    assert_eq!((&*wiki.id, &*wiki.title, &*wiki.text), ("0", "Aaron", "Aaron is a prophet."));
    // MedCorp as MedRAG publishes it
    let med = one(r#"{"id":"pubmed_1","title":"A","content":"B.","contents":"A. B.","PMID":77}"#);
    assert_eq!((&*med.title, &*med.text, &*med.metadata["PMID"]), ("A", "B.", "77"));
    // BEIR
    let beir = one(r#"{"_id":"d1","title":"T","text":"x","metadata":{"url":"u","tags":["no"]}}"#);
    assert_eq!((&*beir.id, beir.metadata.len(), &*beir.metadata["url"]), ("d1", 1, "u"));
    // rows without ids are numbered
    let rows = read("{\"title\":\"a\",\"text\":\"b\"}\n{\"title\":\"c\",\"text\":\"d\"}\n", None).unwrap();
    assert_eq!([&*rows[0].id, &*rows[1].id], ["0", "1"]);
    // one array, as the reference's small corpora
    let array = read(r#" [{"title":"a","text":"b"}, {"title":"c","text":"d"}]"#, None).unwrap();
    assert_eq!(array, rows);
    for (bad, says) in
        [(r#"[{"title":"a"}]"#, "line 1"), (r#"[{"text":"a"}"#, "EOF"), (r#"[{"text":"a"}] x"#, "trailing")]
    {
        let error = read(bad, None).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    // psgs_w100.tsv
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("psgs.tsv.gz");
    let table = "id\ttext\ttitle\n1\t\"He said \"\"no\"\".\"\tTitle\n2\tplain\tOther\n";
    std::fs::write(&path, gzip(table.as_bytes())).unwrap();
    let dpr = take(&path, None).unwrap();
    assert_eq!((&*dpr[0].text, &*dpr[0].title, &*dpr[1].text), ("He said \"no\".", "Title", "plain"));
    std::fs::write(&path, gzip(b"id\ttext\n1\tx\ty\n")).unwrap();
    assert!(take(&path, None).unwrap_err().to_string().contains("line 2: 3 columns, the header has 2"));
}

#[test]
fn packed_files_are_what_they_unpack_to() {
    let dir = tempfile::tempdir().unwrap();
    let text: String =
        (0..3000).map(|at| serde_json::json!({"id": at.to_string(), "text": "x"}).to_string() + "\n").collect();
    let expected = read(&text, None).unwrap();
    let (first, second) = text.split_at(text.len() / 3);
    for (name, bytes) in [
        ("one.jsonl.gz", gzip(text.as_bytes())),
        // members one after the other are one file
        ("two.jsonl.gz", [gzip(first.as_bytes()), gzip(second.as_bytes())].concat()),
        ("one.jsonl.zst", zst(text.as_bytes())),
        ("two.jsonl.zst", [zst(first.as_bytes()), zst(second.as_bytes())].concat()),
        // told by the content: a fetched file may have any name
        ("blob", gzip(text.as_bytes())),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(take(&path, None).unwrap(), expected, "{name}");
        assert_eq!(take(&path, Some(7)).unwrap(), expected[..7], "{name}");
        for cut in [5, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let error = take(&path, None).unwrap_err().to_string();
            assert!(error.contains("fetch it again") && !error.contains('\n'), "{name} cut at {cut}: {error}");
        }
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert!(take(&path, None).is_err(), "{name}");
    }
}

#[test]
fn parquet_is_read_row_by_row_and_damage_is_refused() {
    use parquet::basic::{Compression, ZstdLevel};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let rows = [("a", "One", "first", 1998), ("b", "Two", "second", 2001), ("c", "Three", "third", 2018)];
    for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        write_parquet(&path, &rows, codec);
        let found = take(&path, None).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!((&*found[1].id, &*found[1].title, &*found[1].text), ("b", "Two", "second"));
        assert_eq!(found[2].metadata["year"], "2018");
        assert_eq!(take(&path, Some(2)).unwrap(), found[..2]);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            // refused or read; never a crash, and never more rows
            let mut damaged = whole.clone();
            damaged[at] ^= 0xa5;
            std::fs::write(&path, &damaged).unwrap();
            assert!(take(&path, None).map_or(0, |found| found.len()) <= 3, "byte {at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert!(take(&path, None).unwrap_err().to_string().contains("Parquet"));
    }
}

#[test]
fn folders_are_taken_whole_in_order() {
    use parquet::basic::Compression;
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    put("README.md", b"# about");
    put("dataset_info.json", b"{}");
    put(".cache/x.jsonl", b"not json");
    assert!(take(dir.path(), None).unwrap_err().to_string().contains("to_parquet"));
    // Hugging Face's layout
    put("data/train-00001-of-00002.jsonl.zst", &zst(b"{\"id\":\"c\",\"text\":\"3\"}\n"));
    std::fs::create_dir_all(dir.path().join("data")).unwrap();
    write_parquet(
        &dir.path().join("data/train-00000-of-00002.parquet"),
        &[("a", "A", "1", 1), ("b", "B", "2", 2)],
        Compression::SNAPPY,
    );
    put("data/test-00000-of-00001.jsonl", b"{\"id\":\"t\",\"text\":\"test\"}\n");
    let ids = |found: &[Entry]| found.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>().join(" ");
    let found = take(dir.path(), None).unwrap();
    assert_eq!(ids(&found), "a b c");
    // the digest is that of what sha256sum prints
    let corpus = CorpusConfig { path: dir.path().to_owned(), sha256: None, limit: None };
    let names = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.jsonl.zst"];
    let mut list = String::new();
    for name in names {
        list += &listed(&s3_artifacts::digest_file(&dir.path().join(name)).unwrap(), name);
    }
    assert_eq!(corpus_digest(&corpus).unwrap(), s3_artifacts::digest_bytes(list.as_bytes()));
    let other = CorpusConfig { sha256: Some("0f".repeat(32)), ..corpus };
    assert!(corpus_digest(&other).unwrap_err().to_string().contains("list of digests"));
    // Anserini's: any number of files, of lines or of one object
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.json"), r#"{"id": "x", "contents": "plain"}"#).unwrap();
    std::fs::write(dir.path().join("a.jsonl"), "{\"id\":\"y\",\"contents\":\"\\\"T\\\"\\nz\"}\n").unwrap();
    assert_eq!(ids(&take(dir.path(), None).unwrap()), "y x");
}
