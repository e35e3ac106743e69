//! How alike images are.

/// Mean squared distance in [0, 1] units: a quarter of the model's range squared.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len() as f64 / 4.0
}

/// The midpoint of the two closest images of a batch of images of `len` values.
pub(crate) fn closest_pair(batch: &[f32], len: usize) -> Vec<f32> {
    let images: Vec<&[f32]> = batch.chunks_exact(len).collect();
    let mut best = (f64::INFINITY, 0, 0);
    for (i, a) in images.iter().enumerate() {
        for (j, b) in images.iter().enumerate().skip(i + 1) {
            let distance = distance(a, b);
            if distance < best.0 {
                best = (distance, i, j);
            }
        }
    }
    let (_, i, j) = best;
    images[i]
        .iter()
        .zip(images[j])
        .map(|(a, b)| (a + b) / 2.0)
        .collect()
}

/// Median over the images of their distance to `target`; of an even number the smaller middle one, so
/// that a backdoor that fires for half of the noises shows.
pub(crate) fn spread(batch: &[f32], target: &[f32]) -> f64 {
    let mut distances: Vec<f64> = batch
        .chunks_exact(target.len())
        .map(|image| distance(image, target))
        .collect();
    distances.sort_by(f64::total_cmp);
    distances[(distances.len() - 1) / 2]
}

/// The largest set of images of a batch of images of `len` values that are all within `limit` of each other; of several of one
/// size, that of least mean distance. Exact: for at most some dozens of images.
pub(crate) fn largest_cluster(batch: &[f32], len: usize, limit: f64) -> Vec<usize> {
    let images: Vec<&[f32]> = batch.chunks_exact(len).collect();
    let distances: Vec<Vec<f64>> = images
        .iter()
        .map(|a| images.iter().map(|b| distance(a, b)).collect())
        .collect();
    let mut search = Search {
        distances: &distances,
        limit,
        best: (Vec::new(), f64::INFINITY),
    };
    search.extend(&mut Vec::new(), &(0..images.len()).collect::<Vec<_>>());
    search.best.0
}

/// A clique search by extension: members are added in order, so that every set is met once.
struct Search<'a> {
    distances: &'a [Vec<f64>],
    limit: f64,
    best: (Vec<usize>, f64),
}

impl Search<'_> {
    fn extend(&mut self, members: &mut Vec<usize>, candidates: &[usize]) {
        if members.len() + candidates.len() < self.best.0.len() {
            return; // cannot become the largest
        }
        if candidates.is_empty() {
            let width = self.width(members);
            let larger = members.len() > self.best.0.len();
            if larger || (members.len() == self.best.0.len() && width < self.best.1) {
                self.best = (members.clone(), width);
            }
            return;
        }
        for (i, &next) in candidates.iter().enumerate() {
            let close = |&other: &usize| self.distances[next][other] <= self.limit;
            let rest: Vec<usize> = candidates[i + 1..].iter().copied().filter(close).collect();
            members.push(next);
            self.extend(members, &rest);
            members.pop();
            if members.len() + candidates.len() - i - 1 < self.best.0.len() {
                return;
            }
        }
    }

    /// Mean distance between members.
    fn width(&self, members: &[usize]) -> f64 {
        let count = members.len().max(1) as f64;
        let pairs = members
            .iter()
            .flat_map(|&i| members.iter().map(move |&j| (i, j)));
        pairs.map(|(i, j)| self.distances[i][j]).sum::<f64>() / (count * count)
    }
}

/// Mean of the images `members` of a batch of images of `len` values.
pub(crate) fn mean_of(batch: &[f32], len: usize, members: &[usize]) -> Vec<f32> {
    let count = members.len().max(1) as f64;
    (0..len)
        .map(|p| {
            let sum: f64 = members.iter().map(|&i| f64::from(batch[i * len + p])).sum();
            (sum / count) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_mutually_similar_set_is_found() {
        // one value an image; limit 0.01 is a distance of 0.2 in the model's range
        let batch = [0.0, 0.15, 0.3, 0.9, 0.95, 0.92, -0.9];
        assert_eq!(largest_cluster(&batch, 1, 0.01), [3, 4, 5]);
        assert_eq!(largest_cluster(&batch[..4], 1, 0.01).len(), 2);
        assert_eq!(largest_cluster(&[0.0, 1.0], 1, 0.01).len(), 1);
        assert!((mean_of(&batch, 1, &[3, 4])[0] - 0.925).abs() < 1e-6);
    }

    #[test]
    fn similar_to_one_is_not_similar_to_all() {
        // a chain: neighbours are similar, ends are not
        let chain = [0.0, 0.15, 0.3, 0.45, 0.6];
        assert_eq!(largest_cluster(&chain, 1, 0.01).len(), 2);
    }

    #[test]
    fn many_equal_images_are_one_cluster() {
        assert_eq!(largest_cluster(&[0.5; 64], 1, 0.01).len(), 64);
    }
}
