//! Apache Parquet: every column optional, packed by Zstandard.

use super::frame::{Cell, Frame, Kind};
use crate::error::EvalError;
use parquet::basic::{Compression, ConvertedType, Repetition, Type as Physical, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use std::sync::Arc;

/// The table as a file's bytes.
pub fn parquet(frame: &Frame) -> Result<Vec<u8>, EvalError> {
    write(frame).map_err(|error| EvalError::Export(error.to_string()))
}

fn write(frame: &Frame) -> Result<Vec<u8>, ParquetError> {
    let fields = frame.columns.iter().map(|column| {
        let (physical, converted) = match column.kind {
            Kind::Text => (Physical::BYTE_ARRAY, ConvertedType::UTF8),
            Kind::Whole => (Physical::INT64, ConvertedType::NONE),
            Kind::Real => (Physical::DOUBLE, ConvertedType::NONE),
            Kind::Truth => (Physical::BOOLEAN, ConvertedType::NONE),
        };
        let field = Type::primitive_type_builder(&column.name, physical);
        Ok(Arc::new(field.with_converted_type(converted).with_repetition(Repetition::OPTIONAL).build()?))
    });
    let fields = fields.collect::<Result<Vec<_>, ParquetError>>()?;
    let schema = Arc::new(Type::group_type_builder("table").with_fields(fields).build()?);
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_created_by("s3-evaluator".into())
        .build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    let mut at = 0;
    while let Some(mut column) = group.next_column()? {
        let cells: Vec<&Cell> = frame.rows.iter().map(|row| &row[at]).collect();
        let levels: Vec<i16> = cells.iter().map(|cell| i16::from(**cell != Cell::Null)).collect();
        match column.untyped() {
            ColumnWriter::ByteArrayColumnWriter(column) => {
                let text = |cell: &&Cell| match cell {
                    Cell::Text(text) => Some(ByteArray::from(text.as_str())),
                    _ => None,
                };
                column.write_batch(&cells.iter().filter_map(text).collect::<Vec<_>>(), Some(&levels), None)?;
            }
            ColumnWriter::Int64ColumnWriter(column) => {
                let whole = |cell: &&Cell| if let Cell::Whole(number) = cell { Some(*number) } else { None };
                column.write_batch(&cells.iter().filter_map(whole).collect::<Vec<_>>(), Some(&levels), None)?;
            }
            ColumnWriter::DoubleColumnWriter(column) => {
                let real = |cell: &&Cell| if let Cell::Real(number) = cell { Some(*number) } else { None };
                column.write_batch(&cells.iter().filter_map(real).collect::<Vec<_>>(), Some(&levels), None)?;
            }
            ColumnWriter::BoolColumnWriter(column) => {
                let truth = |cell: &&Cell| if let Cell::Truth(yes) = cell { Some(*yes) } else { None };
                column.write_batch(&cells.iter().filter_map(truth).collect::<Vec<_>>(), Some(&levels), None)?;
            }
            _ => return Err(ParquetError::General("a column of a type that is never made".into())),
        }
        column.close()?;
        at += 1;
    }
    group.close()?;
    writer.into_inner()
}
