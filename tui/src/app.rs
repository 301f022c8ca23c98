//! The terminal user interface.
//!
//! ```text
//!  keys, mouse, size ─┐                        ┌─► view ─► screen
//!  watch, follow,     ├─► Input ─► update ─► State
//!  terminal, answers ─┘              └─► Effect ─► runner ─► daemon
//! ```
//! [`state::State`] is plain data, [`update::update`] its only writer, [`view::view`] the only drawer, [`runner::Runner`] the only part that
//! talks to the daemon. [`run`] owns all of them: it waits for one input, takes in what else is ready, and draws when a frame is due and
//! something changed. When nothing happens, nothing wakes it but the clocks that the screen shows.
//!
//! The terminal is given back on every way out, panics included.

pub mod composer;
pub mod conversation;
pub mod field;
pub mod input;
pub mod keymap;
pub mod layout;
pub mod markdown;
pub mod runner;
pub mod state;
pub mod terminal;
pub mod text;
pub mod theme;
pub mod update;
pub mod view;
pub mod wrap;

use std::io::{Stdout, stdout};
use std::time::Duration;

use anyhow::Context;
use crossterm::event::{DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture, Event, EventStream};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use futures::StreamExt;
use openagent_core::time::Timestamp;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Size;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::client::Client;
use input::Input;
use runner::{INPUT_CAPACITY, Runner};
use state::{Note, State};
use theme::Theme;
use update::update;

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(16);

/// Longest time for which inputs are taken in before keys are looked at again.
const DRAIN: Duration = Duration::from_millis(8);

/// How the interface is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Id of the session to open first.
    pub session: Option<String>,
    /// The mouse scrolls and clicks; the terminal's own selection then wants shift.
    pub mouse: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { session: None, mouse: true }
    }
}

/// The terminal while it is ours.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

fn give_back() {
    // Nothing can be done about a terminal that is gone.
    let _ = execute!(
        stdout(),
        EndSynchronizedUpdate,
        DisableMouseCapture,
        DisableBracketedPaste,
        LeaveAlternateScreen,
        crossterm::cursor::Show
    );
    let _ = disable_raw_mode();
}

impl Screen {
    fn take(mouse: bool) -> anyhow::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        enable_raw_mode().context("cannot use this terminal; is the output one?")?;
        execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste).inspect_err(|_| give_back())?;
        if mouse {
            execute!(stdout(), EnableMouseCapture).inspect_err(|_| give_back())?;
        }
        let terminal = Terminal::new(CrosstermBackend::new(stdout())).inspect_err(|_| give_back())?;
        Ok(Self { terminal })
    }
}

impl Screen {
    /// Draws a frame, which the terminal shows as a whole: it is longer than what is written at once.
    fn draw(&mut self, state: &State) -> std::io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| view::view(state, frame))?;
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn now() -> Timestamp {
    time::OffsetDateTime::now_utc().into()
}

fn translate(event: Event) -> Option<Input> {
    match event {
        Event::Key(key) => Some(Input::Key(key)),
        Event::Paste(text) => Some(Input::Paste(Zeroizing::new(text))),
        Event::Mouse(event) => Some(Input::Mouse(event)),
        Event::Resize(columns, rows) => Some(Input::Resize(columns, rows)),
        Event::FocusGained | Event::FocusLost => None,
    }
}

fn theme() -> Theme {
    let plain =
        std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Theme { color: !plain }
}

/// Runs the interface until the user quits or the terminal is gone.
pub async fn run(client: Client, options: Options) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut screen = Screen::take(options.mouse)?;
    let size = screen.terminal.size()?;
    let folder = std::env::current_dir().map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default();
    let mut state = State::new(Size::new(size.width, size.height), theme(), folder);
    state.open_first = options.session;
    client.name().clone_into(&mut state.me);
    let (inputs, mut incoming) = mpsc::channel(INPUT_CAPACITY);
    let mut runner = Runner::new(client, inputs);
    let mut keys = EventStream::new();
    let mut dirty = true;
    let mut next_frame = Instant::now();

    loop {
        let stale = state.stale_after().map(|millis| Instant::now() + Duration::from_millis(millis));
        let first = tokio::select! {
            // Keys come first, also under a flood of output; a frame that is due comes before more of the flood.
            biased;
            event = keys.next() => match event {
                Some(event) => translate(event.context("cannot read the terminal")?),
                None => return Ok(()),
            },
            () = tokio::time::sleep_until(next_frame), if dirty => None,
            Some(input) = incoming.recv() => Some(input),
            () = tokio::time::sleep_until(stale.unwrap_or(next_frame)), if !dirty && stale.is_some() => {
                dirty = true;
                None
            },
            _ = hangup.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        take(&mut state, &mut runner, Input::Clock(now()))?;
        let drain_until = Instant::now() + DRAIN;
        let mut next = first;
        while let Some(input) = next {
            dirty = true;
            if !take(&mut state, &mut runner, input)? {
                return Ok(());
            }
            next = if Instant::now() < drain_until { incoming.try_recv().ok() } else { None };
        }
        anyhow::ensure!(!runner.reap(), "a task of the interface failed; please report the message above");
        if dirty && Instant::now() >= next_frame {
            take(&mut state, &mut runner, Input::Frame)?;
            screen.draw(&state).context("cannot draw")?;
            next_frame = Instant::now() + FRAME;
            dirty = false;
        }
    }
}

/// Takes one input in and carries out what follows; `false` for the end of the program.
fn take(state: &mut State, runner: &mut Runner, input: Input) -> anyhow::Result<bool> {
    for effect in update(state, input) {
        match runner.run(effect) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) => state.note = Some(Note { text: error.message, hint: error.hint, bad: true }),
        }
    }
    Ok(true)
}
