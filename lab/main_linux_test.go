package lab

var maybeChild = MaybeChild
