//! What must not hurt `registry serve`: clients that stand still, signals, kills,
//! and another one beside it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use smolcellar_store::Digest;
use smolcellar_tests::cellar::Cellar;
use smolcellar_tests::needs::{Need, have};
use smolcellar_tests::served::Served;

const SIZE: usize = 100_000_000;

fn connect(served: &Served) -> TcpStream {
    let stream = TcpStream::connect(&served.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Sends a request; the head of the answer.
fn ask(served: &Served, request: &str, body: &[u8]) -> String {
    let mut stream = connect(served);
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n",
        served.addr
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Begins an upload and sends some of it; the connection on which more is awaited.
fn half_an_upload(served: &Served) -> TcpStream {
    let begun = ask(served, "POST /v2/app/blobs/uploads/", b"");
    let location = begun.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    let mut stream = connect(served);
    write!(stream, "PATCH {location} HTTP/1.1\r\nHost: {}\r\nContent-Length: 9000000\r\n\r\n", served.addr)
        .unwrap();
    stream.write_all(&vec![7; 2_000_000]).unwrap();
    // Until it has arrived.
    let began = Instant::now();
    while !ask(served, &format!("GET {location}"), b"").contains("range: 0-1999999") {
        assert!(began.elapsed() < Duration::from_secs(10));
    }
    stream
}

/// How long curl takes for the blob, in milliseconds: the median of so many times.
fn pull(url: &str) -> u128 {
    let mut times: Vec<u128> = (0..5)
        .map(|_| {
            let began = Instant::now();
            let got =
                Command::new("curl").args(["--silent", "--fail", "--output", "/dev/null", url]).status();
            assert!(got.unwrap().success());
            began.elapsed().as_millis()
        })
        .collect();
    times.sort_unstable();
    times[2]
}

fn temporary(cellar: &Cellar) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(cellar.cache().join("tmp")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[test]
fn two_hundred_clients_that_trickle_leave_room_and_memory_for_a_real_one() {
    if !have(&[Need::Program("curl")]) {
        return;
    }
    let cellar = Cellar::new();
    let served = Served::start(&cellar, &[]);
    let blob: Vec<u8> = (0..SIZE).map(|n| (n ^ (n >> 11)) as u8).collect();
    let digest = Digest::of(&blob);
    let put = ask(&served, &format!("POST /v2/app/blobs/uploads/?digest={digest}"), &blob);
    assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    let url = format!("http://{}/v2/app/blobs/{digest}", served.addr);
    let alone = pull(&url);
    // A hundred take a byte now and then, fifty send a head so, fifty an upload.
    let mut clients: Vec<TcpStream> = Vec::new();
    for n in 0..200 {
        let mut stream = connect(&served);
        let text = match n % 4 {
            0 | 1 => format!("GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: {}\r\n\r\n", served.addr),
            2 => "GET /v2/ HTTP/1.1\r\nHo".to_owned(),
            _ => {
                let lost = Digest::of(b"nowhere");
                format!(
                    "POST /v2/app/blobs/uploads/?digest={lost} HTTP/1.1\r\nHost: {}\r\nContent-Length: 9000000\r\n\r\n",
                    served.addr
                )
            }
        };
        stream.write_all(text.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        clients.push(stream);
    }
    let done = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (n, stream) in clients.iter_mut().enumerate() {
                    let _ =
                        if n % 4 < 2 { stream.read(&mut [0]).is_ok() } else { stream.write(b"x").is_ok() };
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let beside = pull(&url);
        done.store(true, Ordering::Relaxed);
        beside
    });
    let (memory, ratio) = (served.most_memory(), beside as f64 / alone as f64);
    let text =
        format!("alone {alone} ms, beside 200 clients that trickle {beside} ms ({ratio:.2}), {memory} KiB");
    let _ = writeln!(std::io::stderr(), "{text}");
    assert!(memory < 64 << 10, "{text}");
    // The machine has other work too: what is asked for is that it does not stand still.
    assert!(beside < alone * 3 + 300, "{text}");
}

#[test]
fn two_servers_of_one_cache_see_what_either_takes() {
    let cellar = Cellar::new();
    let (a, b) = (Served::start(&cellar, &[]), Served::start(&cellar, &[]));
    assert_ne!(a.addr, b.addr);
    let config = b"{}";
    let digest = Digest::of(config);
    ask(&a, &format!("POST /v2/app/blobs/uploads/?digest={digest}"), config);
    let manifest = serde_json::json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest, "size": 2 }, "layers": [] });
    let put = ask(&a, "PUT /v2/app/manifests/v1", manifest.to_string().as_bytes());
    assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    drop(a);
    assert!(ask(&b, "GET /v2/app/manifests/v1", b"").starts_with("HTTP/1.1 200"));
    assert!(ask(&b, &format!("GET /v2/app/blobs/{digest}"), b"").ends_with("{}"));
    drop(b);
    cellar.run(["cache", "gc"]);
    cellar.assert_sound();
}

#[test]
fn what_a_killed_server_leaves_is_swept_by_the_next_process() {
    let cellar = Cellar::new();
    let mut served = Served::start(&cellar, &[]);
    let _half = half_an_upload(&served);
    served.signal("KILL");
    assert_eq!(served.wait(Duration::from_secs(5)), 137);
    let left = temporary(&cellar);
    assert_eq!(left.len(), 1);
    let served = Served::start(&cellar, &[]);
    assert!(!left[0].exists() && temporary(&cellar).len() == 1);
    drop(served);
    cellar.run(["cache", "gc"]);
    cellar.assert_sound();
}

#[test]
fn a_signal_ends_it_in_time_and_a_second_one_at_once() {
    let cellar = Cellar::new();
    // Nothing is under way.
    for (name, quiet) in [("INT", true), ("TERM", true), ("TERM", false)] {
        let mut served = Served::start(&cellar, &[]);
        let half = (!quiet).then(|| half_an_upload(&served));
        let began = Instant::now();
        served.signal(name);
        assert_eq!(served.wait(Duration::from_secs(9)), 0);
        let limit = Duration::from_secs(if quiet { 2 } else { 8 });
        assert!(began.elapsed() < limit, "{:?}", began.elapsed());
        assert_eq!(temporary(&cellar), Vec::<std::path::PathBuf>::new());
        drop(half);
    }
    let mut served = Served::start(&cellar, &[]);
    let _half = half_an_upload(&served);
    let began = Instant::now();
    served.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    served.signal("TERM");
    assert_eq!(served.wait(Duration::from_secs(5)), 143);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    cellar.run(["cache", "gc"]);
    cellar.assert_sound();
}

#[test]
fn it_is_served_to_this_machine_alone_and_says_what_is_wrong() {
    let cellar = Cellar::new();
    for addr in ["0.0.0.0:0", "[::]:0", "192.0.2.1:5000"] {
        let refused = cellar.fails(2, ["registry", "serve", "--addr", addr]);
        assert!(refused.contains("this machine alone"), "{refused}");
    }
    let refused = cellar.fails(2, ["registry", "serve", "--addr", "example.org:5000"]);
    assert!(refused.contains("no address"), "{refused}");
    let served = Served::start(&cellar, &[]);
    let taken = cellar.fails(1, ["registry", "serve", "--addr", &served.addr]);
    assert!(taken.contains(&served.addr) && taken.contains("another"), "{taken}");
    let port = served.addr.rsplit_once(':').unwrap().1.to_owned();
    drop(served);
    let again = Served::start(&cellar, &["--addr", &format!("localhost:{port}")]);
    assert_eq!(again.addr, format!("127.0.0.1:{port}"));
}
