//! The retriever: builds an index over a corpus and serves it.
//!
//! * build: [`corpus`] → [`passages`], [`lexical`], [`embed`] → [`index`] (published by digest)
//! * web: [`mod@web`], a web search behind the same faces
//! * serve: [`index`] → [`engine`], which computes what waits in its [`queue`] in rounds → [`grpc`] and [`http`], behind one [`front`]
//!
//! Ranking ([`lexical`], [`dense`], [`rank`]) is pure; the edges are [`mod@build`] and [`serve`].

pub mod access;
pub mod analyzer;
pub mod assist;
pub mod audit;
pub mod build;
pub mod cache;
pub mod corpus;
pub mod dense;
pub mod dense_leg;
pub mod embed;
pub mod engine;
mod error;
pub mod export;
pub mod filter;
pub mod flat;
pub mod front;
pub mod gate;
pub mod grpc;
pub mod http;
pub mod index;
pub mod keys;
pub mod lexical;
pub mod lexical_file;
pub mod live;
mod mapped;
pub mod passages;
pub mod porter;
pub mod queue;
pub mod rank;
pub mod request;
pub mod rerank;
mod round;
pub mod serve;
pub mod splice;
pub mod team;
pub mod tools;
pub mod vectors;
pub mod web;
pub mod words;

pub use error::{Result, RetrieverError};
