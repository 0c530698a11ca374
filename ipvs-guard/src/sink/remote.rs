//! Receivers that can be away: events wait in a bounded queue, are handed over in
//! batches, and are tried again with growing pauses.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc},
    time::sleep,
};

use super::{Message, QUEUE, Sink};
use crate::{event::Event, say::counted};

/// Events that are handed over at once at most.
const BATCH: usize = 512;
/// The first pause after a failure, about.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The longest that a receiver can ask for.
const LONGEST_WISH: Duration = Duration::from_secs(300);
/// Threads for calls that block, such as resolving a name: one that hangs does not
/// keep the next from being tried, and more are not made.
const BLOCKING_THREADS: usize = 2;

/// Why events were not handed over.
#[derive(Debug, Error)]
pub enum Trouble {
    /// The receiver is away or does not take any for now: they are tried again.
    #[error("{0}")]
    Away(String),
    /// As [`Trouble::Away`], and the receiver says when to try again.
    #[error("{reason}")]
    Busy {
        /// Why.
        reason: String,
        /// When.
        after: Duration,
    },
    /// It will not take the first so many of them, however often they are tried.
    #[error("{reason}")]
    Refused {
        /// How many.
        events: usize,
        /// Why.
        reason: String,
    },
    /// It has taken the first so many of them but for some, of which it only tells the
    /// number.
    #[error("{reason}")]
    Partly {
        /// How many it is done with.
        events: usize,
        /// How many of those it has not taken.
        lost: usize,
        /// Why.
        reason: String,
    },
}

/// What takes events.
pub trait Receiver: Send + 'static {
    /// Hands the first of `events` over, oldest first, and returns how many of them it
    /// has taken, one at least. Called with the others again. Dropped in the middle
    /// when the agent ends.
    ///
    /// # Errors
    /// [`Trouble`]; none of `events` has been taken then, unless it says so.
    fn deliver(
        &mut self,
        events: &[Arc<Event>],
    ) -> impl Future<Output = Result<usize, Trouble>> + Send;
}

impl Sink {
    /// Starts a sink that hands events to `receiver`; `stage` names it in
    /// `ipvs.loss.stage`, `what` in messages.
    ///
    /// # Errors
    /// That of starting a thread or its event loop.
    pub fn hand_to(
        stage: &'static str,
        what: impl Into<String>,
        receiver: impl Receiver,
    ) -> io::Result<Self> {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()?;
        let what = what.into();
        let waiting = Arc::new(AtomicU64::new(0));
        let mut courier = Courier {
            what: what.clone(),
            inbox,
            receiver,
            lost: Arc::clone(&lost),
            open: Arc::clone(&waiting),
            hand: Vec::new(),
            pauses: None,
            refusal_said: false,
            absence_said: false,
        };
        let thread = thread::Builder::new()
            .name(stage.into())
            .spawn(move || runtime.block_on(courier.work()))?;
        Ok(Self {
            stage,
            what,
            queue,
            lost,
            waiting,
            gone: Arc::new(Notify::new()),
            thread,
        })
    }
}

/// Takes events from the queue to the receiver.
struct Courier<R> {
    what: String,
    inbox: mpsc::Receiver<Message>,
    receiver: R,
    lost: Arc<AtomicU64>,
    /// Events that are neither handed over nor lost yet, those in the queue included.
    open: Arc<AtomicU64>,
    /// Taken from the queue; whether one is a report of losses, which nobody counts.
    hand: Vec<(Arc<Event>, bool)>,
    /// While the receiver is away.
    pauses: Option<ExponentialBackoff>,
    /// A receiver that refuses some events and takes others is no news each time.
    refusal_said: bool,
    /// Until it is back.
    absence_said: bool,
}

impl<R: Receiver> Courier<R> {
    async fn work(&mut self) {
        while self.fill().await {
            let events: Vec<_> = self
                .hand
                .iter()
                .map(|(event, _)| Arc::clone(event))
                .collect();
            match self.receiver.deliver(&events).await {
                Ok(taken) => {
                    self.settle(taken);
                    self.is_back();
                }
                Err(Trouble::Refused { events, reason }) => {
                    let refused = self.settle(events.max(1));
                    self.refused(refused, &reason);
                    self.pauses = None;
                }
                Err(Trouble::Partly {
                    events,
                    lost,
                    reason,
                }) => {
                    let settled = self.settle(events.max(1));
                    self.refused(settled.min(lost as u64), &reason);
                    self.is_back();
                }
                Err(Trouble::Away(reason)) => {
                    self.is_away(&reason);
                    sleep(self.pause()).await;
                }
                Err(Trouble::Busy { reason, after }) => {
                    self.is_away(&reason);
                    sleep(self.pause().max(after.min(LONGEST_WISH))).await;
                }
            }
        }
        let lost = self.lost.load(Ordering::Relaxed);
        if (self.refusal_said || self.absence_said) && lost > 0 {
            log::error!("{}: {} lost in all", self.what, counted(lost, "event"));
        }
    }

    /// Takes what is in the queue, waits for it where nothing is in hand; whether there
    /// is anything to hand over.
    async fn fill(&mut self) -> bool {
        while self.hand.is_empty() {
            let Some(message) = self.inbox.recv().await else {
                return false;
            };
            self.keep(message);
        }
        while self.hand.len() < BATCH
            && let Ok(message) = self.inbox.try_recv()
        {
            self.keep(message);
        }
        true
    }

    fn keep(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.hand.push((event, false)),
            Message::Report(event) => self.hand.push((event, true)),
            Message::Summary(_) => {}
        }
    }

    /// The first so many are out of hand; how many events that were, without reports.
    fn settle(&mut self, messages: usize) -> u64 {
        let out = self.hand.drain(..messages.min(self.hand.len()));
        let events = out.filter(|(_, report)| !report).count() as u64;
        self.open.fetch_sub(events, Ordering::Relaxed);
        events
    }

    fn is_back(&mut self) {
        self.pauses = None;
        if self.absence_said {
            log::warn!("{}: events are taken again", self.what);
            self.absence_said = false;
        }
    }

    /// Said once, until it is back.
    fn is_away(&mut self, reason: &str) {
        if !self.absence_said {
            self.absence_said = true;
            log::error!(
                "{}: {reason}; events wait, those that do not fit are counted as ipvs.loss",
                self.what
            );
        }
    }

    /// Said once.
    fn refused(&mut self, events: u64, reason: &str) {
        self.lost.fetch_add(events, Ordering::Relaxed);
        if !self.refusal_said {
            self.refusal_said = true;
            log::error!(
                "{}: {reason}; events that it refuses are counted as ipvs.loss",
                self.what
            );
        }
    }

    fn pause(&mut self) -> Duration {
        self.pauses
            .get_or_insert_with(|| {
                ExponentialBuilder::default()
                    .with_min_delay(FIRST_PAUSE)
                    .with_max_delay(LONGEST_PAUSE)
                    .without_max_times()
                    .with_jitter()
                    .build()
            })
            .next()
            .unwrap_or(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, atomic::AtomicBool};

    use super::*;
    use crate::{event::Class, pipeline::Summary};

    fn event() -> Arc<Event> {
        let time = "2026-11-21T00:00:00Z".parse().unwrap();
        Arc::new(Event::new(Class::StaleReuse, time, "h".into()))
    }

    #[derive(Clone, Default)]
    struct Desk {
        open: Arc<AtomicBool>,
        refuses: Arc<AtomicBool>,
        taken: Arc<Mutex<usize>>,
        /// Takes all but one of each batch.
        picks: Arc<AtomicBool>,
    }

    impl Receiver for Desk {
        async fn deliver(&mut self, events: &[Arc<Event>]) -> Result<usize, Trouble> {
            if self.refuses.swap(false, Ordering::Relaxed) {
                return Err(Trouble::Refused {
                    events: 3,
                    reason: "not these".into(),
                });
            }
            if !self.open.load(Ordering::Relaxed) {
                return Err(Trouble::Away("closed".into()));
            }
            if self.picks.load(Ordering::Relaxed) {
                *self.taken.lock().unwrap() += events.len() - 1;
                return Err(Trouble::Partly {
                    events: events.len(),
                    lost: 1,
                    reason: "all but one".into(),
                });
            }
            // Not all at once.
            let some = events.len().div_ceil(2);
            *self.taken.lock().unwrap() += some;
            Ok(some)
        }
    }

    #[test]
    fn what_is_not_taken_is_counted_and_what_waits_is_taken_later() {
        let desk = Desk::default();
        desk.refuses.store(true, Ordering::Relaxed);
        let sink = Sink::hand_to("sink.test", "test", desk.clone()).unwrap();
        let sent = QUEUE + 5_000;
        for _ in 0..sent {
            sink.offer(&event());
        }
        desk.open.store(true, Ordering::Relaxed);
        let lost = Arc::clone(&sink.lost);
        assert_eq!(sink.finish(Summary::default(), Duration::from_secs(30)), 0);
        let lost = lost.load(Ordering::Relaxed) as usize;
        assert!(lost >= 3, "{lost} lost");
        assert_eq!(*desk.taken.lock().unwrap() + lost, sent);
    }

    #[test]
    fn what_a_receiver_leaves_out_is_counted_and_not_tried_again() {
        let desk = Desk::default();
        desk.picks.store(true, Ordering::Relaxed);
        desk.open.store(true, Ordering::Relaxed);
        let sink = Sink::hand_to("sink.test", "test", desk.clone()).unwrap();
        for _ in 0..1_000 {
            sink.offer(&event());
        }
        let lost = Arc::clone(&sink.lost);
        assert_eq!(sink.finish(Summary::default(), Duration::from_secs(30)), 0);
        let lost = lost.load(Ordering::Relaxed) as usize;
        assert!(lost > 0);
        assert_eq!(*desk.taken.lock().unwrap() + lost, 1_000);
    }

    #[test]
    fn a_receiver_that_stays_away_does_not_hold_up_the_end() {
        let sink = Sink::hand_to("sink.test", "test", Desk::default()).unwrap();
        sink.offer(&event());
        let begin = std::time::Instant::now();
        let left = sink.finish(Summary::default(), Duration::from_millis(50));
        assert_eq!(left, 1);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
