"""When a model is trained again, and the careful steps by which the new version takes the champion's place."""
