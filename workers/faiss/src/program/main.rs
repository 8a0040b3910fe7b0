//! `s3-faiss`: FAISS, asked over the socket that is its standard input. Started by the retriever, not by people.

mod index;
mod limits;

use s3_faiss::wire::{self, Reply, Request};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers until the parent is gone.
fn serve() -> std::io::Result<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut socket = UnixStream::from(socket);
    if socket.peer_addr().is_err() {
        return Err(std::io::Error::other("this program is started by s3-retriever; it does nothing by itself"));
    }
    limits::follow_parent()?;
    let unfit = limits::unfit();
    let mut index = index::Index::default();
    while let Some((request, body)) = wire::receive::<Request>(&mut socket)? {
        let answer = match unfit {
            Some(reason) => Err(reason.to_owned()),
            None => index.answer(&request, &body),
        };
        let (reply, body) = answer.unwrap_or_else(|reason| (Reply::Failed { reason }, Vec::new()));
        wire::send(&mut socket, &reply, &body)?;
    }
    Ok(())
}
