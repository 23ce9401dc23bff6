//! How figures are shown. Lines go out as they come: a run that is cut short has said what it knew.

#[derive(Default)]
pub(crate) struct Table {
    begun: bool,
}

impl Table {
    pub(crate) fn row(&mut self, what: &str, figure: &str, budget: &str) {
        if !self.begun {
            println!("| what | measured | budget |\n|---|---|---|");
            self.begun = true;
        }
        println!("| {what} | {figure} | {budget} |");
    }
}
