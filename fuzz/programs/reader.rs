//! Reads the bytes of a program from front to end.

pub struct Reader<'p>(&'p [u8]);

impl<'p> Reader<'p> {
    pub fn new(program: &'p [u8]) -> Self {
        Self(program)
    }

    pub fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Reads a number below `count`. `count` must not be 0.
    pub fn below(&mut self, count: usize) -> Option<usize> {
        Some(usize::from(self.byte()?) % count)
    }

    /// Reads a length and that many bytes, or fewer at the end of the program.
    pub fn bytes(&mut self) -> Option<&'p [u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(bytes)
    }
}
