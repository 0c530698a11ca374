//! Where events go. Each sink has a bounded queue and a thread of its own, and
//! counts what it loses; none slows another or the ring buffer.

mod file;
mod human;
mod journald;
mod json;
mod lines;
mod local;
pub mod otlp;
mod remote;
mod sentence;
mod severity;
mod syslog;
mod tls;
mod unsent;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::sync::{Notify, mpsc};

pub use self::{
    file::{LogFile, Rotation},
    human::Human,
    journald::Journald,
    json::Json,
    lines::LineWriter,
    remote::{Receiver, Trouble},
    severity::{Severity, severity},
    syslog::Syslog,
};
use crate::{event::Event, pipeline::Summary, privilege, say::counted};

/// Events that wait for a sink at most: a few MiB.
const QUEUE: usize = 16_384;
/// Bytes that are written at once.
const BATCH: usize = 64 << 10;

/// The text form of a stream.
pub trait Format: Send + 'static {
    /// What stands above the first event.
    fn header(&self) -> Option<&'static str> {
        None
    }
    /// Appends one event, with its line end.
    fn event(&mut self, event: &Event, out: &mut BytesMut);
    /// Appends what follows the last event.
    fn summary(&mut self, summary: &Summary, out: &mut BytesMut);
}

enum Message {
    Event(Arc<Event>),
    /// Of losses: no event that could be lost itself.
    Report(Arc<Event>),
    Summary(Box<Summary>),
}

/// A running sink.
pub struct Sink {
    stage: &'static str,
    what: String,
    queue: mpsc::Sender<Message>,
    lost: Arc<AtomicU64>,
    /// Events that were offered and are neither out nor lost yet.
    waiting: Arc<AtomicU64>,
    gone: Arc<Notify>,
    thread: thread::JoinHandle<()>,
}

impl Sink {
    /// Starts a sink that writes `format` to `out`; `stage` names it in
    /// `ipvs.loss.stage`, `what` in messages.
    ///
    /// # Errors
    /// That of starting a thread.
    pub fn start<W: io::Write + Send + 'static>(
        stage: &'static str,
        what: impl Into<String>,
        mut format: impl Format,
        out: W,
    ) -> io::Result<Self> {
        let (queue, mut inbox) = mpsc::channel::<Message>(QUEUE);
        let what = what.into();
        let lost = Arc::new(AtomicU64::new(0));
        let waiting = Arc::new(AtomicU64::new(0));
        let gone = Arc::new(Notify::new());
        let mut writer = LineWriter::new(out, what.clone(), Arc::clone(&lost));
        let thread = thread::Builder::new().name(stage.into()).spawn({
            let gone = Arc::clone(&gone);
            let waiting = Arc::clone(&waiting);
            move || {
                privilege::confine_sink();
                let mut buffer = BytesMut::with_capacity(BATCH * 2);
                let mut header = format.header();
                while let Some(first) = inbox.blocking_recv() {
                    if matches!(first, Message::Event(_))
                        && let Some(text) = header.take()
                        && writer.write_text(text.as_bytes()).is_err()
                    {
                        gone.notify_one();
                        return;
                    }
                    let mut next = Some(first);
                    let mut aside = BytesMut::new();
                    let mut events = 0;
                    while let Some(message) = next {
                        match message {
                            Message::Event(event) => {
                                events += 1;
                                format.event(&event, &mut buffer);
                            }
                            Message::Report(event) => format.event(&event, &mut aside),
                            Message::Summary(summary) => format.summary(&summary, &mut aside),
                        }
                        next = if buffer.len() < BATCH {
                            inbox.try_recv().ok()
                        } else {
                            None
                        };
                    }
                    // What is no event comes after the events that were before it.
                    if writer.write(&buffer).is_err() || writer.write_text(&aside).is_err() {
                        waiting.store(0, Ordering::Relaxed);
                        gone.notify_one();
                        return;
                    }
                    waiting.fetch_sub(events, Ordering::Relaxed);
                    buffer.clear();
                }
                if let Some(words) = writer.last_words() {
                    log::error!("{words}");
                }
            }
        })?;
        Ok(Self {
            stage,
            what,
            queue,
            lost,
            waiting,
            gone,
            thread,
        })
    }

    /// Hands an event over, or counts it as lost when the queue is full.
    pub fn offer(&self, event: &Arc<Event>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self
            .queue
            .try_send(Message::Event(Arc::clone(event)))
            .is_err()
        {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Hands a report of losses over; whether there was room.
    pub fn offer_report(&self, event: &Arc<Event>) -> bool {
        self.queue
            .try_send(Message::Report(Arc::clone(event)))
            .is_ok()
    }

    /// Name of this sink's stage in `ipvs.loss.stage`.
    pub const fn stage(&self) -> &'static str {
        self.stage
    }

    /// Events lost here so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Notified when the reader at the other end has gone.
    pub fn gone(&self) -> Arc<Notify> {
        Arc::clone(&self.gone)
    }

    /// Writes what is queued and the summary; gives up after `patience`, for a
    /// reader may never read again, and says what was left behind then. Returns how
    /// many events that were.
    pub fn finish(self, summary: Summary, patience: Duration) -> u64 {
        if self.queue.is_closed() {
            // Its reader has gone, a quiet end; what was lost by it is counted.
            return 0;
        }
        let (what, waiting) = (self.what.clone(), Arc::clone(&self.waiting));
        self.end(summary, patience);
        let left = waiting.load(Ordering::Relaxed);
        if left > 0 {
            log::error!(
                "{what}: {} not taken before the end",
                counted(left, "event")
            );
        }
        left
    }

    fn end(self, summary: Summary, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut message = Message::Summary(Box::new(summary));
        while let Err(mpsc::error::TrySendError::Full(back)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = back;
            thread::sleep(Duration::from_millis(5));
        }
        drop(self.queue);
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;
    use crate::event::Class;

    fn event() -> Arc<Event> {
        let time = "2026-11-21T00:00:00Z".parse().unwrap();
        Arc::new(Event::new(Class::StaleReuse, time, "h".into()))
    }

    #[derive(Clone, Default)]
    struct Gate(Arc<(Mutex<State>, Condvar)>);

    /// Whether it is open, and what has passed.
    type State = (bool, Vec<u8>);

    impl io::Write for Gate {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            let (lock, opened) = &*self.0;
            let mut state = opened
                .wait_while(lock.lock().unwrap(), |(open, _)| !*open)
                .unwrap();
            state.1.extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_costs_counted_events_and_nothing_else() {
        let gate = Gate::default();
        let sink = Sink::start("sink.test", "test", Json, gate.clone()).unwrap();
        let sent = QUEUE as u64 * 2;
        for _ in 0..sent {
            sink.offer(&event());
        }
        let lost = sink.lost();
        assert!(lost > 0, "nothing was lost");
        gate.0.0.lock().unwrap().0 = true;
        gate.0.1.notify_all();
        sink.finish(Summary::default(), Duration::from_secs(30));
        let written = gate
            .0
            .0
            .lock()
            .unwrap()
            .1
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        assert_eq!(written as u64 + lost, sent);
    }

    #[test]
    fn a_reader_that_never_reads_does_not_hold_up_the_end() {
        let sink = Sink::start("sink.test", "test", Json, Gate::default()).unwrap();
        for _ in 0..QUEUE * 2 {
            sink.offer(&event());
        }
        let begin = Instant::now();
        sink.finish(Summary::default(), Duration::from_millis(50));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
