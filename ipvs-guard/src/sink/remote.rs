//! Receivers that can be away: events wait in a bounded queue, are handed over in
//! batches, and are tried again with growing pauses.

use std::{
    collections::VecDeque,
    future::{Future, pending, ready},
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
    time::{Instant, sleep, sleep_until},
};

use super::{Message, QUEUE, Sink};
use crate::{event::Event, privilege, say::counted};

/// Events that are handed over at once at most.
const BATCH: usize = 512;
/// Events that are kept after they were taken, for receivers that may lose them yet.
const KEPT: usize = 16_384;
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

    /// How long an event that was taken is in doubt: a receiver that goes away within
    /// this time may have lost it, and gets it once more. Zero where taken is safe.
    const DOUBT: Duration = Duration::ZERO;

    /// Whether all that was taken has reached the receiver's machine. As long as it has
    /// not, doubt does not run out.
    fn has_arrived(&self) -> bool {
        true
    }

    /// Waits while there is nothing to hand over, and resolves when the receiver goes
    /// away. May be dropped at any time.
    fn watch(&mut self) -> impl Future<Output = Trouble> + Send {
        pending()
    }

    /// The last `events` that were taken are about to be handed over once more.
    fn again(&mut self, _events: usize) {}

    /// Nothing follows; resolves when all that was taken is as safe as it gets.
    ///
    /// # Errors
    /// [`Trouble`] where the receiver went away.
    fn close(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send {
        ready(Ok(()))
    }
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
            hand: VecDeque::new(),
            doubtful: VecDeque::new(),
            on_their_way: 0,
            pauses: None,
            taking_since: None,
            refusal_said: false,
            absence_said: false,
        };
        let thread = thread::Builder::new().name(stage.into()).spawn(move || {
            privilege::confine_sink();
            runtime.block_on(courier.work());
        })?;
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

struct InHand {
    event: Arc<Event>,
    /// It reports losses: nobody counts it.
    report: bool,
}

/// Takes events from the queue to the receiver.
struct Courier<R> {
    what: String,
    inbox: mpsc::Receiver<Message>,
    receiver: R,
    lost: Arc<AtomicU64>,
    /// Events that have neither reached the receiver nor are lost yet, those in the queue
    /// included.
    open: Arc<AtomicU64>,
    /// Taken from the queue.
    hand: VecDeque<InHand>,
    /// Handed over, and when: the receiver may lose them yet.
    doubtful: VecDeque<(InHand, Instant)>,
    /// Events of those that have not reached its machine, for all that is known.
    on_their_way: u64,
    /// While the receiver is away, or not back for long.
    pauses: Option<ExponentialBackoff>,
    /// It takes events again since then.
    taking_since: Option<Instant>,
    /// A receiver that refuses some events and takes others is no news each time.
    refusal_said: bool,
    /// Until it is back.
    absence_said: bool,
}

impl<R: Receiver> Courier<R> {
    async fn work(&mut self) {
        loop {
            while self.fill().await {
                let batch = self.hand.iter().take(BATCH);
                let events: Vec<_> = batch.map(|held| Arc::clone(&held.event)).collect();
                match self.receiver.deliver(&events).await {
                    Ok(taken) => {
                        self.hand_over(taken);
                        self.takes();
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
                        self.takes();
                    }
                    Err(Trouble::Away(reason)) => self.is_away(&reason, Duration::ZERO).await,
                    Err(Trouble::Busy { reason, after }) => self.is_away(&reason, after).await,
                }
            }
            match self.receiver.close().await {
                Err(trouble) if !self.doubtful.is_empty() => {
                    self.is_away(&trouble.to_string(), Duration::ZERO).await;
                }
                Ok(()) | Err(_) => {
                    self.open.fetch_sub(self.on_their_way, Ordering::Relaxed);
                    break;
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
            let doubt = self.doubtful.front().map(|(_, since)| *since + R::DOUBT);
            tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    Some(message) => self.keep(message),
                    None => return false,
                },
                trouble = self.receiver.watch() => {
                    // With nothing in doubt it is free to go.
                    if !self.doubtful.is_empty() {
                        self.is_away(&trouble.to_string(), Duration::ZERO).await;
                    }
                }
                () = at(self.taking_since.map(|since| since + R::DOUBT)) => self.is_back(),
                () = at(doubt) => self.trust(),
            }
        }
        while self.hand.len() < BATCH
            && let Ok(message) = self.inbox.try_recv()
        {
            self.keep(message);
        }
        true
    }

    fn keep(&mut self, message: Message) {
        let (event, report) = match message {
            Message::Event(event) => (event, false),
            Message::Report(event) => (event, true),
            Message::Summary(_) => return,
        };
        self.hand.push_back(InHand { event, report });
    }

    /// The receiver has taken the first so many.
    fn hand_over(&mut self, taken: usize) {
        if R::DOUBT.is_zero() {
            self.settle(taken);
            return;
        }
        self.trust();
        let now = Instant::now();
        let taken = self.hand.drain(..taken.min(self.hand.len()));
        let mut events = 0;
        for held in taken {
            events += u64::from(!held.report);
            self.doubtful.push_back((held, now));
        }
        self.on_their_way += events;
        self.arrive();
        let over = self.doubtful.len().saturating_sub(KEPT);
        self.doubtful.drain(..over);
    }

    /// Whether all that was taken has reached the receiver's machine.
    fn arrive(&mut self) -> bool {
        let arrived = self.receiver.has_arrived();
        if arrived {
            self.open.fetch_sub(self.on_their_way, Ordering::Relaxed);
            self.on_their_way = 0;
        }
        arrived
    }

    /// What was taken long enough ago is not in doubt any more.
    fn trust(&mut self) {
        let now = Instant::now();
        if self.arrive() {
            let in_doubt = |(_, since): &(InHand, Instant)| now < *since + R::DOUBT;
            let safe = self.doubtful.iter().position(in_doubt);
            self.doubtful.drain(..safe.unwrap_or(self.doubtful.len()));
        } else if let Some((_, since)) = self.doubtful.front_mut() {
            // It is asked again in a while, not at once.
            *since = now
                .checked_sub(R::DOUBT / 2)
                .map_or(now, |half| half.max(*since));
        }
    }

    /// The first so many are out of hand; how many events that were, without reports.
    fn settle(&mut self, messages: usize) -> u64 {
        let out = self.hand.drain(..messages.min(self.hand.len()));
        let events = out.filter(|held| !held.report).count() as u64;
        self.open.fetch_sub(events, Ordering::Relaxed);
        events
    }

    /// Puts what is in doubt in front of what is in hand, and pauses, for the time that
    /// the receiver asks for or longer.
    async fn is_away(&mut self, reason: &str, asked: Duration) {
        self.taking_since = None;
        self.receiver.again(self.doubtful.len());
        let mut events = 0;
        while let Some((held, _)) = self.doubtful.pop_back() {
            events += u64::from(!held.report);
            self.hand.push_front(held);
        }
        self.open
            .fetch_add(events.saturating_sub(self.on_their_way), Ordering::Relaxed);
        self.on_their_way = 0;
        if !self.absence_said {
            self.absence_said = true;
            log::error!(
                "{}: {reason}; events wait, those that do not fit are counted as ipvs.loss",
                self.what
            );
        }
        sleep(self.pause().max(asked.min(LONGEST_WISH))).await;
    }

    /// It has taken some. It is back once that has held as long as doubt does: one that
    /// takes events and goes, again and again, is not.
    fn takes(&mut self) {
        if self.pauses.is_some() {
            let since = *self.taking_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= R::DOUBT {
                self.is_back();
            }
        }
    }

    fn is_back(&mut self) {
        self.taking_since = None;
        self.pauses = None;
        if self.absence_said {
            log::warn!("{}: events are taken again", self.what);
            self.absence_said = false;
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

/// Resolves at `time`; never when there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
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

    /// Takes events and loses what it was given last when it goes.
    #[derive(Clone)]
    struct Forgetful {
        safe: Arc<Mutex<Vec<u32>>>,
        unsafe_yet: Vec<u32>,
        numbers: u32,
        goes: Arc<AtomicBool>,
    }

    impl Receiver for Forgetful {
        const DOUBT: Duration = Duration::from_secs(60);

        async fn deliver(&mut self, events: &[Arc<Event>]) -> Result<usize, Trouble> {
            if self.goes.swap(false, Ordering::Relaxed) {
                self.unsafe_yet.clear();
                return Err(Trouble::Away("it went".into()));
            }
            for event in events {
                self.numbers += 1;
                assert_eq!(event.seq, Some(self.numbers));
                self.unsafe_yet.push(self.numbers);
            }
            Ok(events.len())
        }

        async fn watch(&mut self) -> Trouble {
            while !self.goes.swap(false, Ordering::Relaxed) {
                sleep(Duration::from_millis(1)).await;
            }
            self.unsafe_yet.clear();
            Trouble::Away("it went".into())
        }

        fn again(&mut self, events: usize) {
            self.numbers -= u32::try_from(events).unwrap();
        }

        async fn close(&mut self) -> Result<(), Trouble> {
            if self.goes.swap(false, Ordering::Relaxed) {
                self.unsafe_yet.clear();
                return Err(Trouble::Away("it went".into()));
            }
            self.safe.lock().unwrap().append(&mut self.unsafe_yet);
            Ok(())
        }
    }

    #[test]
    fn what_a_receiver_may_have_lost_is_handed_over_once_more() {
        let desk = Forgetful {
            safe: Arc::default(),
            unsafe_yet: Vec::new(),
            numbers: 0,
            goes: Arc::default(),
        };
        let sink = Sink::hand_to("sink.test", "test", desk.clone()).unwrap();
        for number in 1..=2_000 {
            let mut event = Event::clone(&event());
            event.seq = Some(number);
            sink.offer(&Arc::new(event));
            if number == 1_000 {
                // While it has nothing to do, as well.
                while sink.waiting.load(Ordering::Relaxed) > 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                desk.goes.store(true, Ordering::Relaxed);
                while desk.goes.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        desk.goes.store(true, Ordering::Relaxed);
        assert_eq!(sink.finish(Summary::default(), Duration::from_secs(30)), 0);
        let safe = desk.safe.lock().unwrap();
        assert_eq!(*safe, (1..=2_000).collect::<Vec<_>>());
    }
}
