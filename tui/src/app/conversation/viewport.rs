//! The window onto a conversation: which rows are on the screen.
//!
//! The place is kept as an entry and a row within it, never as a row number of the whole, so that only what is on the screen (or is
//! scrolled over) is ever laid out. Layouts are memoised by revision, width and fold; the oldest are dropped when there are many.

use std::collections::VecDeque;

use ratatui::text::Line;

use super::render::rows_of;
use super::{Conversation, Entry};
use crate::app::theme::Theme;

/// Entries whose layout is kept; more than any screen shows.
const LAYOUTS_KEPT: usize = 1_000;

/// An entry's rows at a width.
#[derive(Debug)]
pub struct Layout {
    revision: u64,
    width: u16,
    toggled: bool,
    color: bool,
    rows: Vec<Line<'static>>,
}

/// Where the window stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anchor {
    /// At the end, following it.
    #[default]
    Tail,
    /// Its first row is this row of this entry.
    At {
        /// The entry.
        entry: usize,
        /// Row within the entry.
        row: usize,
    },
}

/// What is on the screen.
#[derive(Debug)]
pub struct Viewport {
    /// Where the window stands.
    pub anchor: Anchor,
    /// The entry that keys act on.
    pub selected: Option<usize>,
    /// The rows on the screen: entry and row within it.
    pub visible: Vec<(usize, usize)>,
    width: u16,
    height: u16,
    theme: Theme,
    laid_out: VecDeque<usize>,
    layouts_made: usize,
}

impl Default for Viewport {
    fn default() -> Self {
        Self {
            anchor: Anchor::Tail,
            selected: None,
            visible: Vec::new(),
            width: 80,
            height: 24,
            theme: Theme { color: true },
            laid_out: VecDeque::new(),
            layouts_made: 0,
        }
    }
}

impl Entry {
    /// Its rows as they were last laid out.
    #[must_use]
    pub fn rows(&self) -> &[Line<'static>] {
        self.layout.as_ref().map_or(&[], |layout| &layout.rows)
    }
}

impl Conversation {
    /// How many times an entry was laid out; what drawing costs.
    #[must_use]
    pub const fn layouts_made(&self) -> usize {
        self.view.layouts_made
    }

    fn lay_out(&mut self, index: usize) -> usize {
        let Viewport { width, theme, .. } = self.view;
        let Some(entry) = self.entries.get_mut(index) else { return 0 };
        let fresh = entry.layout.as_ref().is_some_and(|layout| {
            layout.revision == entry.revision && layout.width == width && layout.toggled == entry.toggled && layout.color == theme.color
        });
        if !fresh {
            if entry.layout.is_none() {
                self.view.laid_out.push_back(index);
            }
            let rows = rows_of(entry, usize::from(width), theme);
            entry.layout = Some(Layout { revision: entry.revision, width, toggled: entry.toggled, color: theme.color, rows });
            self.view.layouts_made += 1;
        }
        let count = self.entries[index].rows().len();
        if self.view.laid_out.len() > LAYOUTS_KEPT
            && let Some(oldest) = self.view.laid_out.pop_front()
        {
            if oldest == index {
                self.view.laid_out.push_back(oldest);
            } else if let Some(entry) = self.entries.get_mut(oldest) {
                entry.layout = None;
            }
        }
        count
    }

    /// Finds out which rows are on a screen of this size and lays them out.
    pub fn arrange(&mut self, width: u16, height: u16, theme: Theme) {
        self.view.width = width.max(1);
        self.view.height = height;
        self.view.theme = theme;
        let height = usize::from(height);
        if let Anchor::At { entry, row } = self.view.anchor {
            let entry = entry.min(self.entries.len().saturating_sub(1));
            let row = row.min(self.lay_out(entry).saturating_sub(1));
            let mut visible = Vec::with_capacity(height);
            let mut index = entry;
            let mut from = row;
            while visible.len() < height && index < self.entries.len() {
                let count = self.lay_out(index);
                visible.extend((from..count).take(height - visible.len()).map(|row| (index, row)));
                from = 0;
                index += 1;
            }
            if visible.len() == height {
                self.view.visible = visible;
                return;
            }
            self.view.anchor = Anchor::Tail;
        }
        let mut backwards = Vec::with_capacity(height);
        let mut index = self.entries.len();
        while backwards.len() < height && index > 0 {
            index -= 1;
            let count = self.lay_out(index);
            backwards.extend((0..count).rev().take(height - backwards.len()).map(|row| (index, row)));
        }
        backwards.reverse();
        self.view.visible = backwards;
    }

    /// Moves the window by `rows`, down where positive. At the end it follows again.
    pub fn scroll(&mut self, rows: i32) {
        let Some((mut entry, mut row)) = self.view.visible.first().copied() else { return };
        if rows < 0 {
            let mut left = usize::try_from(rows.unsigned_abs()).unwrap_or(usize::MAX);
            while left > row && entry > 0 {
                left -= row + 1;
                entry -= 1;
                let mut count = self.lay_out(entry);
                while count == 0 && entry > 0 {
                    entry -= 1;
                    count = self.lay_out(entry);
                }
                row = count.saturating_sub(1);
            }
            row = row.saturating_sub(left);
        } else {
            let mut left = usize::try_from(rows).unwrap_or(0);
            loop {
                let count = self.lay_out(entry);
                if row + left < count {
                    row += left;
                    break;
                }
                left = left.saturating_sub(count.saturating_sub(row));
                row = 0;
                entry += 1;
                if entry >= self.entries.len() {
                    self.view.anchor = Anchor::Tail;
                    return;
                }
            }
        }
        self.view.anchor = Anchor::At { entry, row };
        let Viewport { width, height, theme, .. } = self.view;
        self.arrange(width, height, theme);
    }

    /// Moves the window to its beginning.
    pub fn to_top(&mut self) {
        self.view.anchor = Anchor::At { entry: 0, row: 0 };
    }

    /// Moves the window to its end, following it.
    pub fn to_tail(&mut self) {
        self.view.anchor = Anchor::Tail;
        self.view.selected = None;
    }

    /// Chooses the next entry that folds, towards the end where `forward`, and brings it onto the screen.
    pub fn select_next(&mut self, forward: bool) {
        let first = self.view.visible.first().map_or(0, |(entry, _)| *entry);
        let last = self.view.visible.last().map_or(0, |(entry, _)| *entry);
        let found = if forward {
            let from = self.view.selected.map_or(first, |selected| selected + 1);
            (from..self.entries.len()).find(|index| self.entries[*index].kind.folds())
        } else {
            let to = self.view.selected.unwrap_or(last + 1).min(self.entries.len());
            (0..to).rev().find(|index| self.entries[*index].kind.folds())
        };
        if let Some(index) = found {
            self.view.selected = Some(index);
            if !(first..=last).contains(&index) || self.view.visible.first().is_some_and(|(entry, row)| *entry == index && *row > 0) {
                self.view.anchor = Anchor::At { entry: index, row: 0 };
            }
        }
    }

    /// Folds or unfolds `index`.
    pub fn toggle(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index)
            && entry.kind.folds()
        {
            entry.toggled = !entry.toggled;
            self.view.selected = Some(index);
        }
    }

    /// Folds or unfolds what is chosen, else the last thing on the screen that folds.
    pub fn toggle_selected(&mut self) {
        let shown = self.view.visible.iter().rev().map(|(entry, _)| *entry).find(|index| self.entries[*index].kind.folds());
        if let Some(index) = self.view.selected.or(shown) {
            self.toggle(index);
        }
    }
}
