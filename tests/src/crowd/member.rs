//! What one of the crowd does.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
    time::timeout,
};

use super::{BEAT, Floor, Kind, PATIENCE, Spec};
use crate::load::{
    Outcome,
    connection::{bound_socket, of_io},
};

/// A talker or a silent one: keeps a connection until the end, another one if it is lost.
pub(super) async fn stay(floor: Rc<Floor>, spec: Spec, kind: Kind, offset: Duration, begun: oneshot::Sender<()>) {
    let mut begun = Some(begun);
    let mut stopped = floor.pause_until(Instant::now() + offset).await;
    while !stopped {
        let place = match Connection::open(&floor, kind, spec.target).await {
            Err(place) => place,
            Ok(mut connection) => {
                let outcome = match connection.ask().await {
                    Err(outcome) => outcome,
                    Ok(()) => {
                        begun.take().and_then(|begun| begun.send(()).ok());
                        if kind == Kind::Talker { connection.talk().await } else { connection.be_silent().await }
                    }
                };
                floor.end(connection.place, outcome);
                connection.place
            }
        };
        // A lost one comes back, but doesn't storm.
        let wait = if floor.stories.borrow()[place].record.is_failure() { 5 * BEAT } else { Duration::ZERO };
        stopped = floor.pause_until(Instant::now() + wait).await;
    }
}

/// New connections all the time, each with a few words.
pub(super) async fn pass(floor: Rc<Floor>, spec: Spec) {
    let mut passers = JoinSet::new();
    let gap = Duration::from_secs(1) / spec.passers.max(1);
    while spec.passers > 0 && !floor.pause_until(Instant::now() + gap).await {
        let floor = Rc::clone(&floor);
        passers.spawn_local(async move {
            let Ok(mut connection) = Connection::open(&floor, Kind::Passer, spec.target).await else { return };
            let words = fastrand::u32(1..=8);
            let outcome = connection.say(words).await;
            floor.end(connection.place, outcome);
        });
        while passers.try_join_next().is_some() {}
    }
    while passers.join_next().await.is_some() {}
}

struct Connection<'a> {
    floor: &'a Floor,
    place: usize,
    stream: TcpStream,
    asked: u64,
}

impl<'a> Connection<'a> {
    /// Connects; the place of its story, which has ended, if that fails.
    async fn open(floor: &'a Floor, kind: Kind, target: SocketAddr) -> Result<Self, usize> {
        let failed = |local: SocketAddr, outcome: Outcome| {
            let place = floor.begin(kind, local, target);
            floor.end(place, outcome);
            place
        };
        let socket =
            bound_socket(target).map_err(|error| failed(target, Outcome::Other(format!("no local port: {error}"))))?;
        let place = floor.begin(kind, socket.local_addr().unwrap_or(target), target);
        let outcome = match timeout(PATIENCE, socket.connect(target)).await {
            Ok(Ok(stream)) => return Ok(Self { floor, place, stream, asked: 0 }),
            Ok(Err(error)) => of_io(&error),
            Err(_) => Outcome::Timeout,
        };
        floor.end(place, outcome);
        Err(place)
    }

    async fn talk(&mut self) -> Outcome {
        let mut due = Instant::now() + BEAT;
        while !self.floor.pause_until(on_grid(due)).await {
            if let Err(outcome) = self.ask().await {
                return outcome;
            }
            due = (due + BEAT).max(Instant::now());
        }
        Outcome::Ok
    }

    async fn be_silent(&mut self) -> Outcome {
        self.floor.stop().await;
        self.ask().await.err().unwrap_or(Outcome::Ok)
    }

    async fn say(&mut self, words: u32) -> Outcome {
        for _ in 0..words {
            if let Err(outcome) = self.ask().await {
                return outcome;
            }
            self.floor.pause_until(Instant::now() + BEAT / 2).await;
        }
        Outcome::Ok
    }

    /// Says the next number and checks who gives it back.
    async fn ask(&mut self) -> Result<(), Outcome> {
        self.asked += 1;
        let asked_at = Instant::now();
        let question = format!("{} {}\n", self.place, self.asked);
        let mut answer = [0; 64];
        let length = match timeout(PATIENCE, exchange(&mut self.stream, question.as_bytes(), &mut answer)).await {
            Err(_) => return Err(Outcome::Timeout),
            Ok(Err(error)) => return Err(of_io(&error)),
            Ok(Ok(0)) => return Err(Outcome::Closed),
            Ok(Ok(length)) => length,
        };
        let answer = String::from_utf8_lossy(&answer[..length]);
        let Some((server, echoed)) = answer.split_once(' ').filter(|(_, echoed)| *echoed == question) else {
            return Err(Outcome::Other(format!("said {question:?}, heard {answer:?}")));
        };
        let story = &mut self.floor.stories.borrow_mut()[self.place];
        match &story.record.server {
            None => story.record.server = Some(server.to_owned()),
            Some(first) if first != server => {
                return Err(Outcome::Other(format!("began with {first}, then {server} answered {echoed:?}")));
            }
            Some(_) => {}
        }
        story.record.requests += 1;
        story.longest_wait = story.longest_wait.max(asked_at.elapsed());
        Ok(())
    }
}

/// Sends a line and reads one; its length, 0 if the other end has closed.
async fn exchange(stream: &mut TcpStream, line: &[u8], answer: &mut [u8]) -> std::io::Result<usize> {
    stream.write_all(line).await?;
    let mut length = 0;
    while !answer[..length].ends_with(b"\n") && length < answer.len() {
        match stream.read(&mut answer[length..]).await? {
            0 => return Ok(0),
            read => length += read,
        }
    }
    Ok(length)
}

/// Rounded to hundredths of a second, so that few wake-ups serve many.
fn on_grid(at: Instant) -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    let since = at.saturating_duration_since(start);
    start + Duration::from_millis(since.as_millis().div_ceil(10) as u64 * 10)
}
