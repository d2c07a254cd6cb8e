//! Making a failing story short: without this step it still fails, so without it.

use std::time::{Duration, Instant};

use crate::story::{Step, Story};
use crate::violation::Violation;
use crate::world::Faults;

/// A shorter story that breaks the same invariant, and how it broke it.
#[derive(Debug, Clone)]
pub struct Shrunk {
    pub story: Story,
    pub violation: Violation,
    /// How many stories were told on the way.
    pub told: usize,
}

/// What a story breaks.
type Tell<'a> = dyn Fn(&Story) -> Option<Violation> + 'a;

/// Leaves out steps, first many at once, then one by one, as long as the same invariant breaks (Zeller's delta debugging,
/// without its complements); then waits less, and asks for good weather. Stops after `patience`.
#[must_use]
pub fn shrink(story: &Story, violation: Violation, patience: Duration) -> Shrunk {
    shrink_by(story, violation, patience, &|story| story.tell().violation)
}

fn shrink_by(story: &Story, violation: Violation, patience: Duration, tell: &Tell<'_>) -> Shrunk {
    let until = Instant::now() + patience;
    let mut best = Shrunk { story: story.clone(), violation, told: 0 };
    let mut chunk = best.story.steps.len().div_ceil(2);
    while chunk > 0 && Instant::now() < until {
        let shorter = best.without_chunks(chunk, until, tell);
        if chunk > 1 {
            chunk = chunk.div_ceil(2);
        } else if !shorter {
            break;
        }
    }
    let calm = Story { faults: Faults::none(), ..best.story.clone() };
    best.try_instead(calm, tell);
    for at in 0..best.story.steps.len() {
        if Instant::now() >= until {
            break;
        }
        let mut quick = best.story.clone();
        quick.steps[at] = Step { then_ms: 0, ..quick.steps[at] };
        best.try_instead(quick, tell);
    }
    best
}

impl Shrunk {
    fn without_chunks(&mut self, chunk: usize, until: Instant, tell: &Tell<'_>) -> bool {
        let mut shorter = false;
        // From the end: what comes after the failure goes first.
        let mut end = self.story.steps.len();
        while end > 0 && Instant::now() < until {
            let start = end.saturating_sub(chunk);
            let mut without = self.story.clone();
            without.steps.drain(start..end);
            shorter |= self.try_instead(without, tell);
            end = start;
        }
        shorter
    }

    fn try_instead(&mut self, story: Story, tell: &Tell<'_>) -> bool {
        if story.steps == self.story.steps && story.faults == self.story.faults {
            return false;
        }
        self.told += 1;
        match tell(&story) {
            Some(violation) if violation.invariant == self.violation.invariant => {
                self.story = story;
                self.violation = violation;
                true
            }
            Some(_) | None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let story = Story::of(7);
        let needed = [story.steps[3].number, story.steps[11].number];
        let violation = |invariant| Violation::new(invariant, "", ());
        let tell = |story: &Story| {
            let has = |number: &u32| story.steps.iter().any(|step| step.number == *number);
            match (has(&needed[0]), has(&needed[1])) {
                (true, true) => Some(violation("the_one")),
                // Another bug is not the one that is looked for.
                (true, false) => Some(violation("another")),
                (false, _) => None,
            }
        };
        let shrunk = shrink_by(&story, violation("the_one"), Duration::from_secs(20), &tell);
        assert_eq!(shrunk.story.steps.iter().map(|step| step.number).collect::<Vec<_>>(), needed);
        assert!(shrunk.story.steps.iter().all(|step| step.then_ms == 0));
        assert_eq!(shrunk.story.faults, Faults::none());
        assert!(shrunk.told < 200, "{} tellings", shrunk.told);
    }
}
