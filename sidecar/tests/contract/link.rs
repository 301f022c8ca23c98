//! Streams and their first lines.

use openagent_proto::sidecar::{PREAMBLE_CONTROL, PREAMBLE_RELAY};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::fixture::{Daemon, Folders, within};

#[tokio::test]
async fn a_stream_that_does_not_say_what_it_is_for_is_closed() {
    let folders = Folders::new();
    let sidecar = folders.start().await;
    for first in ["\n", "openagent/2 control\n", "GET / HTTP/1.1\r\n\r\n", "openagent/1 controlled\n", &"x".repeat(100_000)] {
        let mut stream = UnixStream::connect(folders.socket()).await.unwrap();
        // It may be closed before all of this is written.
        let _ = stream.write_all(first.as_bytes()).await;
        let mut rest = Vec::new();
        let ended = within("the stream is closed", stream.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.is_empty(), "{first:?}");
    }
    sidecar.dial().await.assert_serving().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_is_open_to_other_users() {
    use std::os::unix::fs::PermissionsExt;
    let folders = Folders::new();
    drop(std::os::unix::net::UnixListener::bind(folders.socket()).unwrap());
    let sidecar = folders.start().await;
    assert_eq!(std::fs::metadata(folders.socket()).unwrap().permissions().mode() & 0o777, 0o666);
    sidecar.dial().await.assert_serving().await;
}

#[tokio::test]
async fn on_a_relay_the_sidecar_is_the_client() {
    let folders = Folders::new();
    let _sidecar = folders.start().await;
    let mut stream = crate::fixture::dial(&folders.socket(), PREAMBLE_RELAY).await;
    let mut hello = [0; 24];
    within("the client's preface", stream.read_exact(&mut hello)).await.unwrap();
    assert_eq!(&hello, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

#[tokio::test]
async fn the_preamble_may_come_in_one_piece_with_what_follows() {
    let folders = Folders::new();
    let _sidecar = folders.start().await;
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut stream = UnixStream::connect(folders.socket()).await.unwrap();
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let mut first = vec![0; 1024];
        let count = from_client.read(&mut first).await.unwrap();
        let piece = [format!("{PREAMBLE_CONTROL}\n").as_bytes(), &first[..count]].concat();
        stream.write_all(&piece).await.unwrap();
        let (mut from_sidecar, mut to_sidecar) = stream.split();
        tokio::select! {
            _ = tokio::io::copy(&mut from_client, &mut to_sidecar) => {}
            _ = tokio::io::copy(&mut from_sidecar, &mut to_client) => {}
        }
    });
    Daemon::over(near).await.assert_serving().await;
}
