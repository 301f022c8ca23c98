//! Styles by role. Foreground and background are the terminal's own; colour only repeats what a symbol or word already says, so that
//! nothing is lost where it is switched off.

use ratatui::style::{Color, Modifier, Style};

/// How roles look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// Colours may be used.
    pub color: bool,
}

impl Theme {
    fn tint(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    /// Text of lesser weight.
    #[must_use]
    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// Text of greater weight.
    #[must_use]
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is chosen.
    #[must_use]
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Something went well.
    #[must_use]
    pub fn good(self) -> Style {
        self.tint(Color::Green)
    }

    /// Something wants attention.
    #[must_use]
    pub fn warn(self) -> Style {
        self.tint(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// Something failed.
    #[must_use]
    pub fn bad(self) -> Style {
        self.tint(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// What the eye is led to: headings, keys, the user's words.
    #[must_use]
    pub fn accent(self) -> Style {
        self.tint(Color::Cyan)
    }

    /// Code and commands.
    #[must_use]
    pub fn code(self) -> Style {
        self.tint(Color::Magenta)
    }

    /// A line that was added.
    #[must_use]
    pub fn added(self) -> Style {
        self.tint(Color::Green)
    }

    /// A line that was removed.
    #[must_use]
    pub fn removed(self) -> Style {
        self.tint(Color::Red)
    }
}
